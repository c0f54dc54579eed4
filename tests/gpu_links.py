"""Engines and a learner on GPUs that are not there, and their gap after weight syncs."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import ray

from policies.loading import load_processor, vision_token_ids
from rl.config import LearnerConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.group import LearnerGroup
from rl.sapo import sapo_loss
from rollout.cluster import Gpu
from rollout.config import Backend
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_actor import EngineHandle
from rollout.pool.engine_pool import EnginePool
from rollout.types import Group, Sampling
from tests.engines import group_of, largest_gap
from tests.fake_gpus import FakeGpus, fake_actors
from tests.learning import rollout
from tests.modalities import CONFIG
from tests.modalities import PROMPTS as ALL_PROMPTS

PROMPTS = ALL_PROMPTS[2::3]  # with an image, several, a video, both
SAMPLING = Sampling(max_tokens=12)
SEEDS = [[100 * place + i for i in range(2)] for place in range(len(PROMPTS))]


class Link:
    """Engines and a learner that are connected by a transport, each engine on one GPU, or on `width`.

    The learner has as many ranks as there are GPUs of engines, unless `num_ranks` says otherwise.
    """

    def __init__(
        self,
        policy: Path,
        folder: Path,
        backend: Backend,
        *,
        num_engines: int = 1,
        width: int = 1,
        num_ranks: int | None = None,
    ) -> None:
        self.folder, self.backend, self.version = folder, backend, 0
        options = replace(
            CONFIG,
            num_engines=num_engines,
            weight_transfer=backend,
            engine_timeout=60.0,
            max_failures=99,
            verify_weights=True,
        )
        # As the learner's samples are rendered.
        options = replace(options, min_image_pixels=None, max_image_pixels=None, max_video_pixels=None)
        self.config = FakeGpus(folder=str(folder), width=width, **asdict(options))
        num_ranks = num_ranks or num_engines * width
        self.options = TrainConfig(
            model=str(policy),
            rollout=self.config,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_updates=1),
            learner=LearnerConfig(dtype="float32", cpu_ranks=num_ranks),
        )
        banned = tuple(vision_token_ids(load_processor(policy)))
        spec = EngineSpec(model=policy, config=self.config, backend=backend, banned_ids=banned)
        node = ray.get_runtime_context().get_node_id()
        gpus = [Gpu(node=node, device=str(rank)) for rank in range(num_ranks)] if backend == "ipc" else []
        with ExitStack() as stack:
            stack.enter_context(fake_actors())  # for replacements, too
            if width > 1:
                stack.callback(_remove_buffers)
            self.learner = LearnerGroup(self.options, policy, None, backend, sapo_loss)
            stack.callback(self.learner.close)
            self.pool = EnginePool(spec, gpus=gpus)
            stack.callback(self.pool.close)
            self.pool.connect(self.learner.connect)
            self.close = stack.pop_all().close

    def step(self) -> None:
        """Trains once, and sends the new weights."""
        self.pool.sleep()
        self.learner.step(rollout())
        self.sync()

    def sync(self) -> dict[str, float]:
        self.version += 1
        return self.pool.sync(self.version, self.learner.sync)

    def replaced(self) -> list[EngineHandle]:
        """The engines, when all that were lost have been replaced."""
        self.pool.run(self.pool.dispatcher.wait_for_replacements())
        assert len(self.pool.engines) == self.config.num_engines
        return self.pool.engines

    def answers(self, engine: EngineHandle) -> list[Group]:
        """What one engine says with the present weights to prompts of every modality."""

        async def ask() -> list[Group]:
            asked = zip(PROMPTS, SEEDS, strict=True)
            async with asyncio.timeout(120):
                return await asyncio.gather(
                    *(group_of(engine, prompt, SAMPLING, seeds, self.version) for prompt, seeds in asked)
                )

        return self.pool.run(ask())

    def trained(self) -> Learner:
        """The learner's policy, in this process."""
        checkpoint = self.folder / f"checkpoint-{self.version}"
        if not checkpoint.exists():
            self.learner.save(checkpoint)
        one_rank = replace(self.options, learner=LearnerConfig(dtype="float32"))
        return Learner(one_rank, checkpoint)

    def gap(self) -> float:
        """The largest gap between the learner and any engine, all of which have the present version."""
        learner, gaps = self.trained(), []
        for engine in self.replaced():
            groups = self.answers(engine)
            assert {c.policy_version for group in groups for c in group.completions} == {self.version}
            gaps.append(largest_gap(learner, groups))
        return max(gaps)

    def failures(self) -> float:
        return self.pool.metrics()["rollout/engine_failures"]


def gap_after_two_syncs(link: Link) -> float:
    """The largest gap after either of two syncs of changed weights."""
    before, gaps = link.pool.engines, []
    for _ in range(2):
        stale = link.answers(before[0])
        link.step()
        assert largest_gap(link.trained(), stale) > 1e-3, "the weights did not change enough to prove anything"
        gaps.append(link.gap())
    assert link.pool.engines == before and link.failures() == 0
    return max(gaps)


def _remove_buffers() -> None:
    """Removes the memory by which the workers of an engine reduce on CPUs: vLLM leaves it."""
    for path in Path("/dev/shm").glob("vllm_dist_*"):
        path.unlink(missing_ok=True)
