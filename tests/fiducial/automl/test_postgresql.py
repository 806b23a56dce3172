"""A search in a real PostgreSQL, which the tests start for themselves."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
import yaml
from quick_search import prepared, search_in

from fiducial.automl.record import read_record
from fiducial.errors import StorageError

MAIN = Path(__file__).parents[1] / "support" / "quick_main.py"
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [
    Path(found).parent for found in [shutil.which("initdb")] if found
]
pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs PostgreSQL (apt-get install postgresql)")


@pytest.fixture(scope="module")
def database():
    """The URL of a database on loopback. The server refuses to run as root, so root runs it as nobody."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which no other user may enter
        yield from served(Path(folder))


def served(folder):
    programs = INSTALLED[-1]
    as_user = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(program, *arguments):
        command = [*as_user, str(programs / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    call("initdb", "-D", f"{folder}/data", "-U", "searcher", "-A", "trust", "--no-sync", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    call("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-t", "60", "-o", options, "start")
    yield f"postgresql://searcher@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")


def start(folder, url, **settings):
    spec = {
        "results_dir": "out",
        "wandb": {"enable": False},
        "train": {"num_epochs": 3, "seconds": 0.2},
        "automl": {"algorithm": "random", "n_trials": 4, "storage": url, "run_final_evaluation": False, **settings},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, str(MAIN), "automl", "-e", "spec.yaml"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestPostgresql:
    def test_two_processes_share_a_search_and_one_is_killed(self, database, tmp_path):
        first, second = (start(tmp_path, database, study_name="shared") for _ in range(2))
        until = time.monotonic() + 100
        while not list((tmp_path / "out/automl").glob("trial_*/train/status.json")):
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        assert second.wait(timeout=200) == 0, second.communicate()
        third = start(tmp_path, database, study_name="shared")
        said = third.communicate(timeout=200)[1]
        assert third.returncode == 0, said
        record = read_record(tmp_path / "out/automl")
        assert [(row.number, row.state) for row in record.rows] == [(n, "finished") for n in range(4)]
        assert not (tmp_path / "out/automl/journal.log").exists()
        url = database.replace("postgresql://", "postgresql+psycopg://")
        kept = optuna.load_study(study_name="shared", storage=url).get_trials(deepcopy=False)
        assert sum(t.state.name == "COMPLETE" for t in kept) == 4

    def test_several_searches_in_one_database(self, database, tmp_path):
        ready = prepared({"algorithm": "bohb", "n_trials": 4, "storage": database})
        search = search_in(tmp_path, ready)
        search.run()
        assert len(search.trials()) == 4

    def test_a_database_that_is_not_there(self, database, tmp_path):
        url = database.replace("/postgres", "/other")
        with pytest.raises(StorageError, match='database "other" does not exist'):
            search_in(tmp_path, prepared({"storage": url, "algorithm": "random"}))
