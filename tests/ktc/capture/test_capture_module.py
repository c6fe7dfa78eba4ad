"""Capture of modules that are no language model: outputs, symbolic sizes, in-place code, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_unflatten
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from ktc.capture import CaptureError, capture_module, materialise


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return BertModel(config).eval()


def _sentences(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + length)
    mask = (torch.rand(batch, length, generator=generator) > 0.3).long()
    mask[:, 0] = 1
    return {
        "input_ids": torch.randint(1, 100, (batch, length), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, (batch, length), generator=generator),
    }


def test_sentence_encoder_equals_eager_at_any_size(bert: BertModel) -> None:
    captured = capture_module(bert, _sentences(2, 8))
    graph = materialise(captured, bert.state_dict())
    assert captured.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert captured.output_spec is not None
    for batch, length in ((3, 11), (2, 64), (4, 1), (1, 5)):
        inputs = _sentences(batch, length)
        with torch.no_grad():
            expected = bert(**inputs)
            found = tree_unflatten(graph(**inputs), captured.output_spec)
        assert isinstance(found, BaseModelOutputWithPoolingAndCrossAttentions)
        for key in ("last_hidden_state", "pooler_output"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


def test_sentence_encoder_is_lifted_and_knows_its_limit(bert: BertModel) -> None:
    captured = capture_module(bert, _sentences(2, 8))
    targets = [str(node.target) for node in captured.module.graph.nodes]
    assert targets.count("kt.linear.default") == 19
    assert targets.count("kt.layer_norm.default") == 7
    assert targets.count("kt.gelu.default") == 3
    assert captured.limits == {"sequence": 64}
    assert set(captured.dims) == {"batch", "sequence"}


class Picture(nn.Module):
    """Ops outside the dialect, an in-place update, a setitem, a constant, and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shift = torch.tensor([1.0, 2.0, 3.0])[:, None, None]

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        x = F.relu(self.norm(self.conv(image + self.shift)), inplace=True)
        x[:, 0] = 0.5
        x[:, 1:3] += scale
        x.mul_(2)
        rows = x.flatten(2).softmax(-1)
        return {"mean": x.mean(dim=(2, 3)), "parts": (rows[..., ::2], 1 - scale), "count": 7}


def test_other_modules_stay_torch_code_and_equal_eager() -> None:
    torch.manual_seed(0)
    model = Picture().eval()
    example = {"image": torch.randn(2, 3, 8, 6), "scale": torch.randn(1)}
    captured = capture_module(model, example, {"image": {0: "batch", 2: "height"}})
    graph = materialise(captured, model.state_dict())
    assert captured.output_spec is not None
    for batch, height in ((2, 8), (1, 5), (5, 13)):
        image, scale = torch.randn(batch, 3, height, 6), torch.randn(1)
        with torch.no_grad():
            expected = model(image, scale)
            found = tree_unflatten(graph(image, scale), captured.output_spec)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert captured.parameters == (
        *("conv.weight", "conv.bias", "norm.running_mean", "norm.running_var", "norm.weight", "norm.bias"),
    )


class Mixed(nn.Module):
    """Addition and multiplication of equal and of unequal shapes, scalars, and reflected operators."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        a = x + y
        b = torch.mul(a, x) * y
        c = b + row + 1.0
        d = torch.add(c, x, alpha=2)
        return 3.0 - (2.0 / (d * d + 1)) ** 2 + torch.sub(x, y).to(x.dtype)


def test_only_sums_and_products_of_equal_shapes_become_dialect_ops() -> None:
    model, shape = Mixed(), (2, 3, 4)
    example = {"x": torch.randn(shape), "y": torch.randn(shape), "row": torch.randn(4)}
    captured = capture_module(model, example, {"x": {0: "n"}, "y": {0: "n"}})
    targets = [str(node.target) for node in captured.module.graph.nodes]
    assert targets.count("kt.add.default") == 2
    assert targets.count("kt.mul.default") == 3
    (found,) = materialise(captured, {})(**example)
    torch.testing.assert_close(found, model(**example))


class Branching(nn.Module):
    """Asks for a value while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), Decision())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


class Decision(nn.Module):
    """Branches on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    """A result whose size depends on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


class Sized(nn.Module):
    """Code that depends on the size of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] % 2 == 0 else x


class Failing(nn.Module):
    """A forward with an error in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(7, -1)[{}["missing"]]


def test_control_flow_on_data_is_refused_with_its_place() -> None:
    with pytest.raises(CaptureError) as caught:
        capture_module(Branching(), {"x": torch.ones(3)})
    assert caught.value.module == "inner.1"
    assert caught.value.op == "bool"
    assert "test_capture_module.py:" in caught.value.source
    assert "depends on the values of tensors" in str(caught.value)


def test_sizes_that_depend_on_data_are_refused() -> None:
    with pytest.raises(CaptureError, match="depends on the values") as caught:
        capture_module(Counting(), {"x": torch.ones(3)})
    assert caught.value.op == "getitem"


def test_code_that_depends_on_a_dynamic_size_is_refused_and_a_fixed_one_is_not() -> None:
    with pytest.raises(CaptureError, match=r"depends on an input size.*rows"):
        capture_module(Sized(), {"x": torch.ones(4, 2)}, {"x": {0: "rows"}})
    captured = capture_module(Sized(), {"x": torch.ones(4, 2)}, {})
    (found,) = materialise(captured, {})(torch.ones(4, 2))
    assert float(found.sum()) == 16.0


def test_an_operation_that_fixes_a_dynamic_size_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(17, -1)

    with pytest.raises(CaptureError, match=r"assumption Eq\(.*rows.*, 0\)") as caught:
        capture_module(Fixed(), {"x": torch.ones(34, 1)}, {"x": {0: "rows"}})
    assert caught.value.op == "view"
    assert "test_capture_module.py:" in caught.value.source


def test_an_error_of_the_model_names_module_and_line() -> None:
    with pytest.raises(CaptureError, match="KeyError: 'missing'") as caught:
        capture_module(Failing(), {"x": torch.ones(14)})
    assert "test_capture_module.py:" in caught.value.source


def test_training_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match="training mode"):
        capture_module(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), {"input": torch.ones(1, 2)})


def test_unknown_inputs_in_dynamic_are_refused() -> None:
    with pytest.raises(CaptureError, match="do not exist: y"):
        capture_module(nn.Linear(2, 2), {"input": torch.ones(1, 2)}, {"y": {0: "rows"}})


def test_outputs_that_are_no_tensors_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return x, object()

    with pytest.raises(CaptureError, match="the output holds object"):
        capture_module(Odd(), {"x": torch.ones(1)})


def test_the_model_is_left_as_it_was(bert: BertModel) -> None:
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    flags = [parameter.requires_grad for parameter in bert.parameters()]
    capture_module(bert, _sentences(2, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())
    assert [parameter.requires_grad for parameter in bert.parameters()] == flags
    assert "forward" not in vars(bert)


def test_a_size_may_be_computed_before_anything_else() -> None:
    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(x.shape[0] * 2 + 1) + x.sum()

    model = Counting()
    graph = materialise(capture_module(model, {"x": torch.ones(4)}, {"x": {0: "n"}}), {})
    torch.testing.assert_close(graph(torch.ones(7))[0], model(torch.ones(7)))
