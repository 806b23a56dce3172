"""``automl``: search for better spec values, verify the best training on the test set, and leave its spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from fiducial.actions.preflight import preflight, warn
from fiducial.actions.result import Result
from fiducial.automl.algorithms import per_trial
from fiducial.automl.page import write_page
from fiducial.automl.places import Place, places_of
from fiducial.automl.population import Population
from fiducial.automl.prepare import EVALUATE, Prepared, prepare
from fiducial.automl.record import Record
from fiducial.automl.search import Search, best_of
from fiducial.automl.study import Workers, check_identity, open_study, root_of, state, storage_faults
from fiducial.automl.table import lines_of
from fiducial.automl.trial import Job, Order, ProcessJob, child_command, folder_of, run_child
from fiducial.automl.watch import Board, checkpoint_of, order_of
from fiducial.automl.winner import BEST_SPEC, copy_checkpoint
from fiducial.errors import Problem, SpecError, TrainingError, optional
from fiducial.run.console import LOGGER
from fiducial.run.run import Run
from fiducial.run.status import read_status
from fiducial.task import Task

__all__ = ["automl"]

VERIFIED = "verified.json"


def automl(task: Task[Any], run: Run) -> Result:
    """Search until the settings say that it is enough; go on with what is there of an earlier start."""
    preflight(task, run)
    prepared = prepare(task, run.spec)
    tested = _has_test_set(prepared)
    for note in prepared.plan.notes:
        LOGGER.info("%s", note)
    _say_space(prepared)
    child_command(task, "train")  # says that a task cannot be found before anything is made
    settings, places = run.spec.automl, places_of(run.spec, prepared.plan.concurrent)
    workers = Workers(run.folder)
    board = Board(run, prepared, len(places))
    try:
        with storage_faults():
            search = _search(prepared, run, workers, board, places)
            search.run()
            others = [row for row in board.update().rows if row.state == "running"]
        if others:
            LOGGER.info("%d trainings still run elsewhere; the process that ends last evaluates the best", len(others))
            return _result(run, board.update())
        best = best_of(search.trials(), prepared.goal)
        if best is None:
            raise _nothing(board.update())
        evaluation = _known(run, root_of(best))
        if tested and not evaluation and not settings.reuse_best_metric_for_final_evaluation:
            evaluation = _verified(prepared, board, best)
        record = board.update(evaluation=evaluation, importances=_importances(search), finished=True)
    finally:
        workers.close()
    write_page(record, run.folder)
    for line in lines_of(record):
        LOGGER.info("%s", line)
    run.note(
        f"best: training {record.best}, {record.metric} {best.value:.6g}; its spec is {run.folder / BEST_SPEC}",
        kpi={f"best_{prepared.goal.metric}": best.value, "Best experiment id": record.best, **evaluation},
    )
    return _result(run, record)


def _search(prepared: Prepared, run: Run, workers: Workers, board: Board, places: list[Place]) -> Search:
    """The search, opened and told apart from others."""
    settings, plan = run.spec.automl, prepared.plan
    with FileLock(run.folder / ".setup.lock"):
        study = open_study(
            settings.storage,
            run.folder,
            settings.study_name or f"{prepared.task.network}_{prepared.task.name}",
            prepared.goal.direction,
            sampler=per_trial(plan, prepared.seed),
            pruner=plan.pruner,
        )
        check_identity(study, prepared.identity())
        population = None
        if plan.algorithm == "pbt":
            population = Population(
                prepared.space,
                settings.automl_population_size,
                settings.automl_max_generations,
                settings.automl_perturbation_factor,
                prepared.seed,
                prepared.goal.better,
                own_first=settings.run_baseline,
            )
        launcher = _Launcher(prepared, run.folder, places, settings.automl_eval_interval)
        search = Search(
            study,
            prepared.space,
            plan,
            prepared.goal,
            workers,
            launcher.start,
            board,
            seed=prepared.seed,
            own_seed=run.spec.train.seed,
            places=len(places),
            run_baseline=settings.run_baseline,
            terminal=prepared.terminal,
            population=population,
            interval=settings.automl_eval_interval,
        )
        board.search = search
        for number in search.begin():
            LOGGER.info("training %d was left by a process that is gone: it is continued", number)
    return search


class _Launcher:
    """Starts trainings as processes."""

    def __init__(self, prepared: Prepared, folder: Path, places: list[Place], interval: int) -> None:
        self.prepared, self.folder, self.places, self.interval = prepared, folder, places, interval
        extra = ["--measure"] if prepared.goal.measured else []
        self.command = child_command(prepared.task, "train", *extra)

    def start(self, order: Order, place: int) -> Job:
        """Raises: SpecError when the checkpoint that it goes on from is gone."""
        where, target = self.places[place], self.folder / order.folder
        if order.begin_from is not None and order.until is not None:
            source = self.folder / folder_of(order.begin_from) / "train"
            if copy_checkpoint(source, target / "train", order.until - self.interval) is None:
                raise SpecError(str(source), "its checkpoint is gone", "search anew in another results_dir")
        tree = self.prepared.tree(order, self.folder, where)
        return ProcessJob(self.command, self.prepared.written(tree), target, where.env)


def _has_test_set(prepared: Prepared) -> bool:
    """Whether the best model can be verified. Raises: SpecError when it must be and cannot."""
    wanted = prepared.spec.automl.run_final_evaluation
    if wanted is False or not hasattr(prepared.spec, "evaluate"):
        return False
    splits = prepared.task.splits(EVALUATE)
    problems = [
        *prepared.task.check_spec(prepared.spec, "evaluate"),
        *prepared.task.check_data(prepared.spec, splits, thorough=False).problems,
    ]
    errors = [problem for problem in problems if problem.level == "error"]
    if errors and wanted:
        raise SpecError.of(errors)
    if errors:
        found = f"the best model will not be verified on a test set: {errors[0].where} · {errors[0].found}"
        warn([Problem("automl.run_final_evaluation", found, "set the test data, or false", "warning")])
    return not errors


def _known(run: Run, best: int) -> dict[str, Any]:
    """What an earlier start found the best model to be worth on the test set; nothing where it was another one."""
    try:
        found = json.loads((run.folder / VERIFIED).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found["kpis"]) if found.get("trial") == best else {}


def _say_space(prepared: Prepared) -> None:
    for dimension in prepared.space.dimensions:
        LOGGER.info("search %s in %s (%s)", dimension.path, dimension.range_text(), dimension.rule)
    reasons: dict[str, list[str]] = {}
    for name, reason in prepared.space.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        LOGGER.info("not searched, as %s: %s%s", reason, ", ".join(names[:2]), more)


def _verified(prepared: Prepared, board: Board, best: Any) -> dict[str, Any]:
    """The best model's numbers on the test set; none, with a warning, when that fails."""
    number = root_of(best)
    folder = board.run.folder / folder_of(number)
    checkpoint = checkpoint_of(prepared, board, number)
    if checkpoint is None:
        LOGGER.warning("training %d has no checkpoint to evaluate", number)
        return {}
    tree = prepared.tree(order_of(prepared, best), board.run.folder)
    tree["evaluate"] |= {"checkpoint": checkpoint, "results_dir": None, "trt_engine": None}
    LOGGER.info("evaluating training %d on the %s", number, prepared.evaluated_on)
    code = run_child(child_command(prepared.task, "evaluate"), prepared.written(tree), folder / "evaluate.log", {})
    records = [r for r in read_status(folder / "evaluate" / "status.json") if r.get("kpi")]
    if code != 0 or not records:
        LOGGER.warning("the evaluation failed: see %s", folder / "evaluate.log")
        return {}
    kpis: dict[str, Any] = records[-1]["kpi"]
    wanted = prepared.spec.automl.final_evaluation_metric
    main = wanted or prepared.goal.tested
    if wanted and wanted not in kpis:
        LOGGER.warning("automl.final_evaluation_metric: evaluate reports no %s, but %s", wanted, ", ".join(kpis))
    kept = {main: kpis[main]} if main in kpis else dict(kpis)
    (board.run.folder / VERIFIED).write_text(json.dumps({"trial": number, "kpis": kept}), "utf-8")
    return kept


def _importances(search: Search) -> dict[str, float]:
    """How much each value matters; nothing where too little is known."""
    importance = optional("optuna.importance", extra="automl")
    if sum(t.state == state("COMPLETE") for t in search.trials()) < 4:
        return {}
    try:
        evaluator = importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = importance.get_param_importances(search.study, evaluator=evaluator)
        return found
    except (ValueError, RuntimeError) as error:
        LOGGER.info("no importances: %s", error)
        return {}


def _nothing(record: Record) -> TrainingError:
    reasons = dict.fromkeys(row.failure for row in record.rows if row.failure)
    why = "; ".join(list(reasons)[:3]) or "all were ended early"
    found = f"none of {len(record.rows)} trainings went to its end: {why}"
    return TrainingError("automl", found, "run train with this spec, whose log says more")


def _result(run: Run, record: Record) -> Result:
    best = record.winner
    kpis = {} if best is None else {**best.kpis, **record.evaluation, f"best_{record.metric}": best.value}
    files = [run.folder / name for name in (BEST_SPEC, "report.html", "study.json")]
    return Result(run.action.name, run.folder, kpis, tuple(path for path in files if path.exists()))
