"""The parts of a run: opened with cheap checks first and engines last, closed in reverse order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from policies.loading import vision_token_ids
from rl.config import TrainConfig, config_dict, config_file
from rl.evaluation.evaluator import Evaluator
from rl.generation.batches import BatchProducer, Stages
from rl.hardware.usage import resource_usage
from rl.learner.group import LearnerGroup
from rl.objectives import check_objective, choose_objective
from rl.preflight import Inputs, TrainArguments, open_run_inputs
from rl.recovery import LearnerFailures
from rl.run_dir.checkpoint import LoopState
from rl.run_dir.checkpoint_writer import CheckpointWriter
from rl.run_dir.html_report import write_report
from rl.run_dir.tracker import ProgressLine, Tracker, read_metrics
from rl.signals.stopping import STOP
from rl.types import CollapseAhead
from rl.watchdog import NOTICES, Notices, Watchdog, gap_notice
from rollout.cluster import cluster_nodes, local_ray, require_room_for_both
from rollout.config import Backend
from rollout.data.mixture import Stream
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_pool import EnginePool
from rollout.pool.teacher import Teacher
from rollout.types import Sampling
from rollout.weights.senders import choose_backend

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """The parts of one run, and the policy version that they are at."""

    config: TrainConfig
    version: int
    """Policy version of learner and engines; each step adds 1."""
    origin: tuple[Path | None, LoopState]
    """The checkpoint that the run started from, None for `config.model`, and the loop's state there."""
    stream: Stream
    learner: LearnerGroup
    pool: EnginePool
    teacher: Teacher | None
    batches: BatchProducer
    evaluator: Evaluator
    checkpoints: CheckpointWriter
    tracker: Tracker
    progress: ProgressLine
    watchdog: Watchdog = field(init=False)
    notices: Notices = field(init=False)
    failures: LearnerFailures = field(init=False)
    started: float = field(default_factory=time.perf_counter)
    """Start of training on this process's clock, minus the training time before a resume."""
    latest: dict[str, float] = field(default_factory=dict)
    """The latest value of each metric."""

    def __post_init__(self) -> None:
        self.failures = LearnerFailures(limit=self.config.learner.max_failures)
        self.watch_anew()

    def watch_anew(self) -> None:
        """Watches as if the run had gone on from the rows that are written."""
        rows = read_metrics(self.config.run_dir)
        self.watchdog = Watchdog(rows)
        self.notices = Notices(rows, signs=[*NOTICES, gap_notice(self.config.rollout.gap_bound)])

    def sync(self) -> dict[str, float]:
        """Sends the learner's weights to all engines as `version`."""
        return self.pool.sync(self.version, self.learner.sync)

    def evaluate(self, *, with_blind: bool) -> dict[str, float]:
        """`eval/` metrics of the present weights; empty without held-out prompts."""
        with STOP.raised():
            return self.evaluator.run(self.version, with_blind=with_blind)

    def metrics(self) -> dict[str, float]:
        """State of the run: engines, teacher, memory, clock, skipped prompts, policy version."""
        return {
            **self.pool.metrics(),
            **(self.teacher.metrics() if self.teacher else {}),
            **self.checkpoints.metrics(),
            **resource_usage(),
            "time/elapsed": time.perf_counter() - self.started,
            "rollout/prompts_skipped": self.stream.skipped,
            "policy/version": self.version,
            "policy/learner_failures": self.failures.total,
        }

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and shows one step's metrics."""
        self.latest |= metrics
        self.tracker.log(step, metrics)
        self.progress.advance(step, metrics)

    def watch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks for signs of trouble, and logs them.

        Raises:
            CollapseAhead: There are some, and the config asks for a rollback.
        """
        if self.config.watchdog.action == "off":
            return
        for sentence in self.notices.watch(step, metrics):
            logger.warning("%s", sentence)
        alarm = self.watchdog.watch(step, metrics)
        if alarm is None:
            return
        logger.warning("%s", alarm.text)
        if self.config.watchdog.action == "rollback":
            raise CollapseAhead(alarm.text, step=step, good_until=alarm.good_until)

    def note_position(self, step: int, *, unlogged: Mapping[str, float] = {}) -> None:
        """Notes that the learner has done a step; `unlogged` has its metrics if its evaluation is still missing."""
        state = LoopState(
            step=step,
            policy_version=self.version,
            cursor=self.batches.cursor(),
            seconds=time.perf_counter() - self.started,
            config=config_dict(self.config),
            metrics={name: float(value) for name, value in self.latest.items()},
            unlogged={name: float(value) for name, value in unlogged.items()},
        )
        self.checkpoints.note(state)


@contextmanager
def open_run(
    config: TrainConfig, checkpoint: Path | None, state: LoopState, arguments: TrainArguments
) -> Iterator[Run]:
    """Opens a run at a checkpoint (None: from the start); closes it and writes `report.html` at the end of the block.

    Raises:
        ValueError: Config, prompts, reward or checkpoint cannot be used; before any engine starts.
    """
    with ExitStack() as stack:
        backend = choose_backend(config.rollout, learner_gpus=config.learner.gpus)
        objective = arguments.objective or choose_objective(config)
        check_objective(objective, by_token=config.teacher.model is not None)
        model = checkpoint or config.model
        with STOP.raised():
            run_inputs = open_run_inputs(config, model, state.cursor, arguments, stack)
        inputs = run_inputs.inputs

        stack.enter_context(local_ray())
        with STOP.raised():
            learner = LearnerGroup(config, model, checkpoint, backend, objective)
            stack.callback(learner.close)
            teacher = _start_teacher(config, model, inputs)
            if teacher is not None:
                stack.callback(teacher.close)
            pool = _start_engines(config, model, backend, inputs, learner, state.policy_version)
            stack.callback(pool.close)
            pool.connect(learner.connect)
            if config.lora.sync == "adapter":  # the engines have loaded the policy without adapters
                pool.sync(state.policy_version, learner.sync)

        sampling = Sampling(max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature)
        stream, runner, processor = run_inputs.stream, inputs.runner, inputs.processor
        stages = Stages(stream=stream, pool=pool, runner=runner, processor=processor, teacher=teacher)
        steps = range(state.step + 1, config.steps + 1)
        batches = BatchProducer(config, sampling, stages, seed=config.seed, steps=steps)
        stack.callback(batches.close)
        evaluator = Evaluator(config.eval, run_inputs.held_out, pool, runner, sampling=sampling, seed=config.seed)
        checkpoints = CheckpointWriter(config, learner, checkpoint)
        stack.callback(checkpoints.close)
        tracker = Tracker(config, config_file(config), state.first_row)
        stack.callback(tracker.close)
        stack.callback(_write_report, config.run_dir)
        yield Run(
            config=config,
            version=state.policy_version,
            origin=(checkpoint, state),
            stream=stream,
            learner=learner,
            pool=pool,
            teacher=teacher,
            batches=batches,
            evaluator=evaluator,
            checkpoints=checkpoints,
            tracker=tracker,
            progress=stack.enter_context(tracker.progress(config.steps, state.step)),
            latest=dict(state.metrics),
        )


def _start_engines(
    config: TrainConfig,
    model: str | Path,
    backend: Backend,
    inputs: Inputs,
    learner: LearnerGroup,
    policy_version: int,
) -> EnginePool:
    sends_adapters = config.lora.sync == "adapter"
    spec = EngineSpec(
        model=config.model if sends_adapters else model,
        config=config.rollout,
        backend=backend,
        banned_ids=tuple(vision_token_ids(inputs.processor)),
        policy_version=policy_version,
        lora_rank=config.lora.rank if sends_adapters else 0,
        return_routed_experts=config.learner.routing_replay == "R3",
    )
    return EnginePool(spec, episodes=inputs.episodes(), gpus=learner.shared_gpus())


def _start_teacher(config: TrainConfig, student: str | Path, inputs: Inputs) -> Teacher | None:
    """Starts the teacher's engines; None without a teacher.

    Raises:
        ValueError: Ray has no room for them.
        RuntimeError: An engine does not start.
    """
    if config.teacher.model is None:
        return None
    engines = config.teacher.engine_config(config.rollout)
    learner_gpus = 0 if config.rollout.shares_gpus else config.learner.gpus
    require_room_for_both(cluster_nodes(), config.rollout, engines, learner_gpus=learner_gpus)
    banned_ids = vision_token_ids(inputs.processor)
    return Teacher(config.teacher.model, student, engines, processor=inputs.processor, banned_ids=banned_ids)


def _write_report(run_dir: Path) -> None:
    """Writes `report.html`; a report that fails does not end the run."""
    try:
        write_report(run_dir)
    except Exception as error:
        logger.warning("no report.html of %s: %s: %s", run_dir, type(error).__name__, error)
