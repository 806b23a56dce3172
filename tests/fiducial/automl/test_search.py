"""The loop of a search, by trainings that are computed here: directions, early ends, failures, going on."""

import math
import sqlite3
from dataclasses import replace
from itertools import pairwise

import optuna
import pytest
from quick_search import Computed, prepared, search_in, spec_with
from quick_task import QUICK, kpis_of, loss_of

from fiducial.automl.goal import Goal, Part, goal_of
from fiducial.automl.record import Record, new_record, rows_of
from fiducial.automl.search import best_of
from fiducial.automl.study import check_identity, root_of, standing, storage_faults
from fiducial.automl.table import lines_of
from fiducial.automl.trial import Ending
from fiducial.errors import SpecError, StorageError

ALGORITHMS = ("hyperband", "asha", "bohb", "dehb", "hyperband_es", "pbt", "random")
SMALL = {"automl_population_size": 5, "automl_max_generations": 3, "automl_eval_interval": 3}


def trials(tmp_path, search):
    search.run()
    return search.trials()


def states(found):
    return [t.state.name for t in sorted(found, key=root_of)]


class TestDirection:
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, "bayesian", "bfbo"])
    @pytest.mark.parametrize("metric", ["val_loss", "val_acc"])
    def test_of_every_algorithm_is_the_metrics(self, tmp_path, algorithm, metric):
        count = 7 if algorithm in ("bayesian", "bfbo") else 12
        ready = prepared({"algorithm": algorithm, "metric": metric, "n_trials": count, "seed": 1, **SMALL})
        search = search_in(tmp_path, ready)
        found = trials(tmp_path, search)
        done = [t for t in found if t.state.name == "COMPLETE"]
        best = best_of(found, ready.goal)
        values = [t.value for t in done]
        assert best.value == (min(values) if metric == "val_loss" else max(values))
        assert search.study.direction.name == ("MINIMIZE" if metric == "val_loss" else "MAXIMIZE")
        # what both directions must agree on: better than the spec's lr 0.1 lies nearer to 0.01
        first = min(found, key=root_of)
        assert abs(math.log10(best.user_attrs["values"]["train.lr"]) + 2) < abs(math.log10(0.1) + 2)
        assert first.user_attrs["own"]
        assert first.user_attrs["values"]["train.lr"] == 0.1

    @pytest.mark.parametrize("algorithm", ["bayesian", "bohb", "dehb"])
    @pytest.mark.parametrize("metric", ["val_loss", "val_acc"])
    def test_what_models_suggest_goes_the_right_way(self, tmp_path, algorithm, metric):
        count = {"bayesian": 10, "bohb": 18, "dehb": 45}[algorithm]
        settings = {"algorithm": algorithm, "metric": metric, "n_trials": count, "min_points_in_model": 6, "seed": 2}
        ready = prepared({**settings, "automl_hyperparameters": ["train.lr"], "automl_min_epochs": 9})
        found = sorted(trials(tmp_path, search_in(tmp_path, ready)), key=root_of)
        away = [abs(math.log10(t.params["train.lr"]) + 2) for t in found]
        assert sum(away[-4:]) / 4 < 0.5  # at random it would be 1; the wrong way ends at lr 1, 2 away


class TestEarlyEnds:
    @pytest.mark.parametrize("algorithm", ["hyperband", "asha", "bohb", "dehb", "hyperband_es"])
    def test_take_less_than_two_thirds_of_the_epochs(self, tmp_path, algorithm):
        ready = prepared({"algorithm": algorithm, "n_trials": 24, "seed": 3}, num_epochs=27)
        found = trials(tmp_path, search_in(tmp_path, ready))
        assert len(found) == 24
        assert sum(row.epochs for row in rows_of(found)) <= 0.6 * 24 * 27
        assert set(states(found)) == {"COMPLETE", "PRUNED"}

    def test_the_specs_own_values_are_never_ended_early(self, tmp_path):
        ready = prepared({"algorithm": "hyperband", "n_trials": 9, "seed": 0}, lr=0.9)
        first, *others = sorted(trials(tmp_path, search_in(tmp_path, ready, places=3)), key=root_of)
        assert (first.state.name, first.last_step) == ("COMPLETE", 9)
        assert "PRUNED" in states(others)

    def test_brackets_are_taos(self):
        from fiducial.automl.algorithms import brackets

        assert brackets(27, 3) == [(27, 1), (9, 3), (6, 9)]
        assert prepared({"algorithm": "hyperband"}, num_epochs=27).plan.trials == 42

    def test_asha_ends_with_enough_at_the_top(self, tmp_path):
        ready = prepared({"algorithm": "asha", "min_top_configs": 3, "seed": 1})
        found = trials(tmp_path, search_in(tmp_path, ready))
        assert states(found).count("COMPLETE") == 3

    def test_epochs_of_units(self):
        plan = prepared({"algorithm": "bohb", "automl_max_epochs": 9, "epoch_multiplier": 2}).plan
        assert (plan.epochs, plan.least_epochs) == (18, 2)
        assert prepared({"algorithm": "bayesian", "automl_max_epochs": 9}, num_epochs=5).plan.epochs == 5

    def test_that_every_training_is_the_best_so_far_lets_twice_the_quota_on(self, tmp_path):
        ready = prepared({"algorithm": "asha", "n_trials": 19, "run_baseline": False}, num_epochs=27)

        def job(order):
            return Computed(order, lambda epoch: {"val_loss": 1.0 - 0.01 * order.number})

        found = trials(tmp_path, search_in(tmp_path, ready, job, run_baseline=False))
        reached = {rung: sum(t.last_step >= rung for t in found) for rung in (1, 3, 9, 27)}
        assert reached == {1: 19, 3: 13, 9: 9, 27: 6}
        assert all(reached[rung * 3] <= 2 * math.ceil(reached[rung] / 3) for rung in (1, 3, 9))

    def test_one_of_eta_goes_on_where_none_is_special(self, tmp_path):
        """The first is the best; the others come in no order."""
        ready = prepared({"algorithm": "asha", "n_trials": 28, "run_baseline": False}, num_epochs=27)

        def job(order):
            return Computed(order, lambda epoch: {"val_loss": 0.01 * (order.number * 11 % 28)})

        found = trials(tmp_path, search_in(tmp_path, ready, job, run_baseline=False))
        reached = [sum(t.last_step >= rung for t in found) for rung in (1, 3, 9, 27)]
        assert reached[0] == 28
        assert all(after <= math.ceil(before / 3) for before, after in pairwise(reached))

    def test_the_worse_do_not_go_on(self, tmp_path):
        ready = prepared({"algorithm": "asha", "n_trials": 9, "run_baseline": False}, num_epochs=9)

        def job(order):
            return Computed(order, lambda epoch: {"val_loss": 1.0 + order.number})

        found = trials(tmp_path, search_in(tmp_path, ready, job, run_baseline=False))
        assert [t.number for t in found if t.last_step > 1] == [0]

    def test_brackets_are_spread_evenly(self):
        from fiducial.automl.pruning import bracket_of

        found = [bracket_of(number, (27, 9, 6)) for number in range(420)]
        assert [found.count(i) for i in range(3)] == pytest.approx([270, 90, 60], abs=2)
        assert {found[i] for i in range(21)} == {0, 1, 2}

    def test_a_curve_that_leads_nowhere(self):
        from fiducial.automl.pruning import extrapolated

        curve = {epoch: 2 * epoch**-0.5 + 0.3 for epoch in range(1, 8)}
        predicted, explained = extrapolated(curve, 100)
        assert predicted == pytest.approx(0.5, abs=0.02)
        assert explained > 0.999
        assert extrapolated({1: 0.4, 2: 0.4, 3: 0.4}, 9) == (0.4, 1.0)
        noise = {1: 0.1, 2: 0.9, 3: 0.0, 4: 1.0, 5: 0.2}
        assert extrapolated(noise, 9)[1] < 0.5


class TestFailures:
    def run(self, tmp_path, job, n_trials=4, **settings):
        ready = prepared({"algorithm": "random", "n_trials": n_trials, **settings})
        search = search_in(tmp_path, ready, lambda order: job(ready, order))
        return sorted(trials(tmp_path, search), key=root_of), search

    def test_are_failed_trials_and_never_the_end(self, tmp_path):
        kinds = ["failed", "out of memory", "killed", "not a number"]

        def job(ready, order):
            end = Ending(kinds[order.number], "why") if order.number < 4 else None
            train = spec_with(ready, order).train
            return Computed(order, lambda epoch: kpis_of("val", loss_of(train, epoch)), end)

        found, search = self.run(tmp_path, job, 6)
        assert states(found) == ["FAIL"] * 4 + ["COMPLETE"] * 2
        assert [t.user_attrs["failure"]["kind"] for t in found[:4]] == kinds
        assert "training 1 failed (out of memory): why" in search.watcher

    def test_numbers_that_are_none(self, tmp_path):
        def job(ready, order):
            return Computed(order, lambda epoch: {"val_loss": None if order.number or epoch < 3 else 1.0})

        found, _ = self.run(tmp_path, job, 2)
        assert states(found) == ["COMPLETE", "FAIL"]
        assert found[1].user_attrs["failure"]["kind"] == "not a number"
        assert not found[1].intermediate_values

    def test_a_training_that_another_ended(self, tmp_path):
        def job(ready, order):
            return Computed(order, lambda epoch: {"val_loss": 1.0}, Ending("stopped"))

        found, _ = self.run(tmp_path, job, 1)
        assert found[0].value == 1.0  # it had reached its last epoch

    def test_one_that_fails_after_its_last_validation(self, tmp_path):
        def job(ready, order):
            return Computed(order, lambda epoch: {"val_loss": 1.0}, Ending("failed", "the disk is full"))

        found, _ = self.run(tmp_path, job, 1)
        assert states(found) == ["FAIL"]

    def test_that_all_fail_is_no_endless_search(self, tmp_path):
        ready = prepared({"algorithm": "asha", "min_top_configs": 1})
        search = search_in(tmp_path, ready, lambda order: Computed(order, lambda epoch: {}, Ending("failed", "no")))
        assert best_of(trials(tmp_path, search), ready.goal) is None
        assert len(search.trials()) == 50


class TestGoingOn:
    def test_after_an_end_in_the_middle(self, tmp_path):
        ready = prepared({"algorithm": "random", "n_trials": 5, "seed": 7})
        whole = [t.params for t in sorted(trials(tmp_path, self.at(tmp_path / "whole", ready)), key=root_of)]

        class PowerError(Exception):
            pass

        def fails(order):
            def kpis(epoch):
                if (order.number, epoch) == (2, 4):
                    raise PowerError
                return kpis_of("val", loss_of(spec_with(ready, order).train, epoch))

            return Computed(order, kpis)

        broken = self.at(tmp_path / "broken", ready, fails)
        with pytest.raises(PowerError):
            broken.run()
        broken.workers.close()
        search = self.at(tmp_path / "broken", ready)
        found = sorted(trials(tmp_path, search), key=root_of)
        assert [t.params for t in found] == whole  # nothing is chosen twice, or otherwise
        assert [root_of(t) for t in found] == [0, 1, 2, 3, 4]
        continued = next(t for t in found if root_of(t) == 2)
        assert continued.number == 3
        assert len(search.study.trials) == 6
        assert [row.state for row in rows_of(found)] == ["finished"] * 5

    def at(self, folder, ready, job=None):
        folder.mkdir(exist_ok=True)
        return search_in(folder, ready, job)

    def test_two_processes_share_one(self, tmp_path):
        ready = prepared({"algorithm": "bohb", "n_trials": 8, "seed": 7})
        one, two = search_in(tmp_path, ready), search_in(tmp_path, ready)
        moving = [one, two]
        while moving:
            moving = [search for search in moving if search._step()]
        found = standing(one.study.get_trials())
        assert len(found) == 8
        assert {t.user_attrs["worker"] for t in found} == {one.workers.name, two.workers.name}
        assert len({t.params["train.lr"] for t in found}) == 8
        assert sum(bool(t.user_attrs.get("own")) for t in found) == 1
        assert one.workers.others() == 1
        two.workers.close()
        assert one.workers.others() == 0

    def test_seeds_are_each_trainings_own(self, tmp_path):
        seeds = []

        def job(order):
            seeds.append(order.seed)
            return Computed(order, lambda epoch: {"val_loss": 1.0})

        search_in(tmp_path, prepared({"algorithm": "random", "n_trials": 4}, seed=5), job).run()
        assert seeds[0] == 5
        assert len(set(seeds)) == 4
        again, seeds = seeds, []
        (tmp_path / "again").mkdir()
        search_in(tmp_path / "again", prepared({"algorithm": "random", "n_trials": 4}, seed=5), job).run()
        assert seeds == again

    def test_a_journal_that_was_cut_off(self, tmp_path):
        ready = prepared({"algorithm": "random", "n_trials": 2})
        search_in(tmp_path, ready).run()
        with (tmp_path / "journal.log").open("ab") as file:
            file.write(b'{"op_code": 4, "worker_id"')
        more = search_in(tmp_path, prepared({"algorithm": "random", "n_trials": 4}))
        assert len(trials(tmp_path, more)) == 4
        assert len(trials(tmp_path, search_in(tmp_path, prepared({"algorithm": "random", "n_trials": 4})))) == 4


class TestPopulation:
    def test_the_worst_go_on_from_the_best(self, tmp_path):
        orders = {}
        ready = prepared({"algorithm": "pbt", "seed": 4, **SMALL})
        assert [d.path for d in ready.space.dimensions] == ["train.lr", "train.flip"]
        assert ready.space.left_out["train.width"] == "a training that goes on cannot change it"

        def job(order):
            orders[order.number] = order
            train = spec_with(ready, order).train
            return Computed(order, lambda epoch: kpis_of("val", loss_of(train, epoch)))

        found = trials(tmp_path, search_in(tmp_path, ready, job))
        assert len(found) == 15
        first = [t for t in found if t.user_attrs["generation"] == 0]
        second = [t for t in found if t.user_attrs["generation"] == 1]
        best, worst = min(first, key=lambda t: t.value), max(first, key=lambda t: t.value)
        heir = next(t for t in second if t.user_attrs["member"] == worst.user_attrs["member"])
        assert heir.user_attrs["parent"] == best.number
        ratio = heir.params["train.lr"] / best.params["train.lr"]
        assert ratio == pytest.approx(1.2) or ratio == pytest.approx(1 / 1.2) or heir.params["train.lr"] == 0.01
        kept = next(t for t in second if t.user_attrs["member"] == best.user_attrs["member"])
        assert (kept.params, kept.user_attrs["parent"]) == (best.params, best.number)
        assert {(o.until, o.epochs) for o in orders.values()} == {(3, 9), (6, 9), (9, 9)}
        assert all((o.begin_from is None) == (o.until == 3) for o in orders.values())
        record = new_record("x", ready.plan, ready.space, ready.goal, 1, found, None)
        assert record.spent == 5 * 9
        assert "15 of 15 trainings over, 45 epochs" in lines_of(record)
        tested = replace(record, evaluation={"test_acc": None, "test_note": "text", "test_loss": 0.5})
        assert lines_of(tested)[-1] == "the best on the test set: test_loss 0.5"
        elsewhere = replace(tested, evaluated_on="validation data")
        assert lines_of(elsewhere)[-1] == "the best on the validation data: test_loss 0.5"

    def test_headings_tell_the_keys_apart(self):
        keys = ["train.optim.trunk.lr", "train.optim.embedder.lr", "train.wd", "width", "model.width", "train.gamma"]
        record = Record("x", "bohb", "val_loss", "minimize", 3, 4, 1, space=[{"key": key} for key in keys])
        ends = ["trunk.lr", "embedder.lr", "wd", "width", "model.width", "gamma"]
        assert record.headings == dict(zip(keys, ends, strict=True))
        assert lines_of(record)[-2].split()[-4:] == ends[:4]
        assert lines_of(record)[-1] == "2 more searched keys: see study.json, and report.html at the end"

    def test_goes_on_after_a_generation(self, tmp_path):
        ready = prepared({"algorithm": "pbt", "seed": 4, **SMALL})
        search = search_in(tmp_path, ready)
        while len(search.trials()) < 7:
            search._step()
        search.workers.close()
        assert len(trials(tmp_path, search_in(tmp_path, ready))) == 15


class TestGoal:
    def goal(self, **settings):
        return prepared(settings).goal

    def test_the_networks_own_metric(self):
        assert (self.goal().metric, self.goal().direction) == ("val_loss", "minimize")
        assert self.goal(metric="loss").metric == "val_loss"
        assert self.goal(metric="acc") == self.goal(metric="val_acc")
        assert self.goal(metric="val_iou_1").direction == "maximize"

    @pytest.mark.parametrize(
        ("metric", "tested"),
        [("val_acc", "test_acc"), ("val Precision at Rank 1", "test Precision at Rank 1"), ("mIoU", "mIoU")],
    )
    def test_its_name_on_the_test_set(self, metric, tested):
        assert Goal((Part(metric, "maximize"),)).tested == tested

    def test_not_every_network_has_a_test_set(self, monkeypatch):
        assert prepared().evaluated_on == "test set"
        monkeypatch.setattr(type(QUICK), "splits", lambda task, action: ("val",))
        assert prepared().evaluated_on == "validation data"

    def test_several_objectives_with_weights(self):
        latency = {"metric": "latency", "weight": 0.5, "scale": 20}
        goal = self.goal(metric="val_acc", objectives=[latency, {"metric": "val_loss", "weight": 2}])
        assert goal.direction == "maximize"
        assert goal.measured
        assert goal.total({"val_acc": 80, "latency_ms": 40, "val_loss": 0.1}) == pytest.approx(0.8 - 0.5 * 2 - 0.2)
        assert goal.so_far({"val_acc": 80, "val_loss": 0.1}) == pytest.approx(0.8 - 0.2)
        assert goal.total({"val_acc": 80, "val_loss": 0.1}) is None
        assert self.goal(include_latency=True).parts[1].scale == 10

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"metric": "val_los"}, "validation reports no 'val_los' · use one of val_loss, val_acc"),
            ({"metric": "val_los"}, "did you mean val_loss?"),
            ({"metric": "val_note"}, "reports no 'val_note'"),
            ({"metric": "val_iou_{class}"}, "reports no"),
            ({"metric": "val_iou_7"}, "automl.metric · unknown metric 'val_iou_7'"),
            ({"objectives": [{"metric": "val_iou_7"}]}, "automl.objectives[0].metric · unknown metric"),
            ({"metric": "latency"}, "reports no 'latency'"),
            ({"direction": "maximize"}, "maximize val_loss, which is better when lower"),
            ({"objectives": [{"metric": "size"}]}, "say how many millions of parameters weigh as much as 1"),
            ({"objectives": [{"metric": "latency", "direction": "maximize", "scale": 1}]}, "maximize latency"),
            ({"objectives": [{"metric": "val_loss"}]}, "val_loss twice"),
        ],
    )
    def test_what_cannot_be(self, settings, told):
        with pytest.raises(SpecError) as caught:
            prepared(settings)
        assert told in str(caught.value)

    def test_a_goal_of_a_task(self):
        from quick_search import spec_of

        assert goal_of(QUICK, spec_of({})).name == "val_loss"


class TestStorage:
    def test_one_that_belongs_to_another_search(self, tmp_path):
        first = search_in(tmp_path, prepared({"algorithm": "random"}))
        check_identity(first.study, prepared({"algorithm": "random", "n_trials": 99}).identity())
        other = prepared({"algorithm": "bohb", "pinned": ["train.flip"]}, num_epochs=8, kind="c")
        with pytest.raises(SpecError) as caught:
            check_identity(first.study, other.identity())
        told = [str(problem) for problem in caught.value.problems]
        assert any("has algorithm 'random' · here it is 'bohb'" in text for text in told), told
        assert any("spec: train.kind 'b' · here it is 'c'" in text for text in told), told
        assert any("epochs 9" in text for text in told), told
        assert any("train.flip" in text for text in told), told
        weighed = prepared({"algorithm": "random", "metric_weight": 2}, weights=[1, 3])
        with pytest.raises(SpecError) as caught:
            check_identity(first.study, weighed.identity())
        goal, weights = (str(problem) for problem in caught.value.problems)
        assert 'goal [["val_loss", "minimize", 1.0, 1.0]] · here it is [["val_loss", "minimize", 2.0, 1.0]]' in goal
        assert "train.weights [1.0, 5.0] · here it is [1.0, 3.0]" in weights

    def test_of_another_direction(self, tmp_path):
        search_in(tmp_path, prepared({"algorithm": "random"}))
        with pytest.raises(SpecError, match="is one to minimize"):
            search_in(tmp_path, prepared({"algorithm": "random", "metric": "val_acc"}))

    def test_of_another_program(self, tmp_path):
        url = f"sqlite:///{tmp_path / 'study.db'}"
        optuna.create_study(storage=url, study_name="quick").enqueue_trial({})
        with pytest.raises(SpecError, match="not one of this program"):
            search_in(tmp_path, prepared({"algorithm": "random", "storage": url}))

    @pytest.mark.parametrize(
        "storage", ["postgresql://nobody:secret@127.0.0.1:1/none", "nosuch://x", "/no/such/folder/journal.log"]
    )
    def test_that_cannot_be_reached(self, tmp_path, storage):
        with pytest.raises(StorageError, match=r"automl\.storage") as caught:
            search_in(tmp_path, prepared({"algorithm": "random", "storage": storage}))
        assert "secret" not in str(caught.value)

    def test_one_in_memory_keeps_nothing(self, tmp_path):
        with pytest.raises(StorageError, match="in memory, ends with its process · name a file"):
            search_in(tmp_path, prepared({"storage": "sqlite://"}))

    def test_a_database_that_another_program_holds(self, tmp_path):
        path = tmp_path / "study.db"
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0}})
        with sqlite3.connect(path) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StorageError, match="cannot be used: database is locked"), storage_faults():
                optuna.create_study(storage=storage)

    @pytest.mark.parametrize("content", [b"notes: [1]\nno end of line", b"SQLite format 3\x00 and so on", b"x"])
    def test_a_file_of_another_kind_stays_as_it_is(self, tmp_path, content):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(StorageError, match=r"file is no journal of a search · .*sqlite:///FILE"):
            search_in(tmp_path, prepared({"storage": str(tmp_path / "file")}))
        assert (tmp_path / "file").read_bytes() == content

    def test_a_database_file(self, tmp_path):
        ready = prepared({"algorithm": "bohb", "n_trials": 4, "storage": f"sqlite:///{tmp_path / 'study.db'}"})
        assert len(trials(tmp_path, search_in(tmp_path, ready))) == 4
        assert len(trials(tmp_path, search_in(tmp_path, ready))) == 4

    def test_optuna_is_quiet(self):
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
