"""The gradients of a step, eager and recorded: as a CUDA graph on a GPU, and here by a recorder that does the work again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.training.gradients import EagerGradients
from teachonce.stages.training.graphed import CudaGraphs, GraphedGradients
from teachonce.storage_schemas.errors import InputError
from torch import Tensor, nn
from torch.nn import functional as F

CPU = Compute(device="cpu", precision="fp32", threads=1)


class Rerun:
    """What a CUDA graph does, by doing the work again into the tensors of the recording."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.recorded = parameters, 0

    def warm_up(self, work: Callable[[], Tensor], times: int) -> None:
        for _ in range(times):
            work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        assert all(parameter.grad is None for parameter in self.parameters)
        loss = work()
        gradients = [parameter.grad for parameter in self.parameters]

        def replay() -> None:
            loss.copy_(work())
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    assert parameter.grad is not None
                    gradient.copy_(parameter.grad)

        return loss, replay


class Net(nn.Module):
    """Batch norm, dropout, and a parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.dropout(self.norm(self.first(images.float().flatten(1) / 255)), 0.5, self.training)
        return self.last(hidden)


def make(*, parts: int = 1, device: str = "cpu", loss: Any = None) -> tuple[Net, EagerGradients]:
    torch.manual_seed(1)
    net = Net().to(device).train()

    def mean(images: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return (net(images) - targets["y"]).square().sum(1).mean()

    return net, EagerGradients(loss=loss or mean, model=net, parameters=tuple(net.parameters()), parts=parts)


def batch(step: int, count: int = 8, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (count, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return images.to(device), {"y": torch.randn(count, 3, generator=generator).to(device)}


def steps(net: Net, gradients: Any, counts: list[int], device: str = "cpu") -> tuple[list[Tensor], dict[str, Tensor]]:
    """Steps of SGD with momentum; every loss, read at the end, and the weights and buffers then."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step, count in enumerate(counts):
        torch.manual_seed(100 + step)
        losses.append(gradients(*batch(step, count, device)))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return losses, net.state_dict()


# --- eager


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_those_of_the_mean_loss(parts: int) -> None:
    net, eager = make(parts=parts)
    net.eval()  # no dropout, and batch norm as it is: parts add up to the whole
    images, targets = batch(0)
    net.last.weight.grad = torch.ones_like(net.last.weight)  # of a step before
    loss = eager(images, targets)
    expected = (net(images) - targets["y"]).square().sum() / 8
    found = [parameter.grad for parameter in net.parameters()]
    wanted = torch.autograd.grad(expected, list(net.parameters()), allow_unused=True)
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parts_take_every_other_sample() -> None:
    seen = []

    def loss(images: Tensor, targets: dict[str, Tensor]) -> Tensor:
        seen.append((images, targets["y"]))
        return net.last.weight.sum() * len(images)

    net, eager = make(parts=4, loss=loss)
    images, targets = batch(0)
    assert float(eager(images, targets)) == pytest.approx(2 * float(net.last.weight.detach().sum()))
    for i, (part, y) in enumerate(seen):
        assert torch.equal(part, images[i::4])
        assert torch.equal(y, targets["y"][i::4])
    torch.testing.assert_close(net.last.weight.grad, torch.full_like(net.last.weight, 2.0))


# --- recorded


@pytest.mark.parametrize("parts", [1, 2])
def test_recorded_steps_are_the_eager_steps(parts: int) -> None:
    """Losses, weights, batch norm's averages and dropout; batches of another size are recorded too."""
    counts = [8, 8, 8, 4, 8, 4]
    expected, weights = steps(*make(parts=parts), counts)
    net, eager = make(parts=parts)
    recorder = Rerun(eager.parameters)
    losses, found = steps(net, GraphedGradients(eager, net, recorder), counts)
    assert recorder.recorded == 2
    assert [float(loss) for loss in losses] == [float(loss) for loss in expected]
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_each_mode_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    net, eager = make()
    recorder = Rerun(eager.parameters)
    gradients = GraphedGradients(eager, net, recorder)
    for _ in range(2):
        for mode in (True, False):
            net.train(mode)
            torch.manual_seed(0)
            loss = gradients(*batch(0))
            found = net.last.weight.grad
            torch.manual_seed(0)
            assert float(eager(*batch(0))) == float(loss)
            expected = net.last.weight.grad
            assert found is not None
            assert expected is not None
            assert torch.equal(found, expected)
    assert recorder.recorded == 2


def test_random_numbers_after_a_recording_are_those_of_the_step() -> None:
    net, eager = make()
    gradients = GraphedGradients(eager, net, Rerun(eager.parameters))
    torch.manual_seed(5)
    gradients(*batch(0))
    after = torch.rand(3)
    torch.manual_seed(5)
    eager(*batch(0))
    assert torch.equal(torch.rand(3), after)


def test_what_is_drawn_on_the_cpu_and_frozen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[Tensor] = []

    class Freezing(Rerun):
        def record(self, work: Any) -> Any:
            frozen.append(torch.rand(()))
            return super().record(work)

    def loss(images: Tensor, targets: dict[str, Tensor]) -> Tensor:
        drawn = torch.rand(())
        return net.last.weight.square().sum() * (frozen[0] if frozen and replaying else drawn)

    net, eager = make(loss=loss)
    recorder = Freezing(eager.parameters)
    gradients = GraphedGradients(eager, net, recorder)
    replaying = False
    replayed = gradients._replayed

    def replay(*given: Any) -> Tensor:
        nonlocal replaying
        replaying = True
        return replayed(*given)

    monkeypatch.setattr(gradients, "_replayed", replay)
    with pytest.raises(InputError) as error:
        gradients(*batch(0))
    assert (error.value.code, error.value.hint) == ("cuda-graph-differs", "leave out --cuda-graphs")


def test_a_loss_that_is_not_finite_is_left_to_the_trainer() -> None:
    def loss(images: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return net.last.weight.sum() * torch.nan

    net, eager = make(loss=loss)
    assert GraphedGradients(eager, net, Rerun(eager.parameters))(*batch(0)).isnan()


def test_work_that_cannot_be_recorded() -> None:
    class Refusing(Rerun):
        def record(self, work: Any) -> Any:
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    net, eager = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError) as error:
        GraphedGradients(eager, net, Refusing(eager.parameters))(*batch(0))
    assert str(error.value) == (
        "the steps of this student cannot be recorded as a CUDA graph: --cuda-graphs: found operation not permitted when "
        "stream is capturing. Next: leave out --cuda-graphs"
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "CUDA graphs need a GPU: --cuda-graphs: expected --device cuda, found cpu. Next: leave out --cuda-graphs"),
        (
            {"compute": Compute(device="cuda", precision="bf16", threads=1), "compiled": True},
            "CUDA graphs are for one process, without --compile: --cuda-graphs: found --compile. Next: leave out one of them",
        ),
        (
            {"compute": Compute(device="cuda", precision="bf16", threads=1), "workers": 2},
            "CUDA graphs are for one process, without --compile: --cuda-graphs: found 2 processes. Next: leave out one of them",
        ),
    ],
)
def test_where_there_are_no_graphs(changes: dict[str, Any], text: str, taught_store, tiny_clip, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        plan_distill(
            taught_store.shards.location,
            taught_store.location,
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / "b"),
            recipe="promptkd",
            options={"batch_size": 8},
            settings=DistillSettings(cuda_graphs=True, compiled=changes.pop("compiled", False)),
            **{"compute": CPU, **changes},
        )
    assert str(error.value) == text
    assert not (tmp_path / "b").exists()


# --- on a GPU


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("parts", [1, 2])
def test_cuda_graphs_repeat_eager_steps(parts: int) -> None:
    counts = [8, 8, 4, 8, 4, 8, 8, 8, 8, 8]
    expected, weights = steps(*make(parts=parts, device="cuda"), counts, "cuda")
    net, eager = make(parts=parts, device="cuda")
    graphs = CudaGraphs(torch.device("cuda"))
    losses, found = steps(net, GraphedGradients(eager, net, graphs), counts, "cuda")
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-5, atol=0)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["promptkd", "kd"])
def test_a_graphed_run_has_the_losses_of_an_eager_one(
    recipe: str, precision: str, taught_store, tiny_clip, tmp_path, monkeypatch
) -> None:
    """Ten steps of `distill`."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.training.trainer import Trainer

    step, losses = Trainer.step, []

    def recorded(*given: Any, **named: Any) -> Tensor:
        losses.append(step(*given, **named))
        return losses[-1]

    monkeypatch.setattr(Trainer, "step", recorded)
    found = []
    for graphs in (False, True):
        losses.clear()
        stage = plan_distill(
            taught_store.shards.location,
            taught_store.location,
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / str(graphs)),
            recipe=recipe,
            options={"batch_size": 8, "epochs": 2, "optimizer": "sgd", "lr": 0.005},
            settings=DistillSettings(cuda_graphs=graphs),
            compute=Compute(device="cuda", precision=precision, threads=1),
            show_progress=False,
        )
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        found.append(torch.stack(losses))
    assert len(found[0]) == 10
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)
