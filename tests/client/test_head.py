"""The head: exact, and in greedy search right about the largest number, by a bound that holds for any weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hivemint.client.generation.head import Head, Screen, _reaching, faster, largest_only


def linear(outputs: int, inputs: int, seed: int) -> nn.Linear:
    """Rows of very different sizes, some of them nearly equal, so that rounding alone would choose wrongly."""
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= 10 ** (torch.rand(outputs, 1, generator=generator) * 3 - 1)
    weight[1::2] = weight[::2] * (1 + 1e-5 * torch.randn(outputs // 2, 1, generator=generator))
    made.weight.copy_(weight)
    return made


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), inputs=st.sampled_from([16, 64, 256]), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_the_screened_largest_is_the_exact_one(seed: int, inputs: int, scale: float) -> None:
    head = linear(400, inputs, seed)
    hidden = torch.randn(1, inputs, generator=torch.Generator().manual_seed(seed + 1)) * scale
    other = torch.randn(1, inputs, generator=torch.Generator().manual_seed(seed + 2))
    exact, screened = head(hidden)[0], Screen(head.weight, other).logits(hidden)[0]
    best = screened.argmax()
    assert exact[best] >= exact.max() - exact.abs().max() * 1e-6, "only fp32's own rounding may choose between equals"
    assert torch.allclose(screened[best], exact[best], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_bound_holds_for_every_output(seed: int) -> None:
    head, hidden = linear(400, 64, seed), torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    hidden[0, 7] *= 100.0
    screen = Screen(head.weight, hidden)
    rough, bound = screen._rough(hidden)
    bound[:400] += 1e-5 * head.weight.norm(dim=1) * hidden.norm()
    assert ((head.weight.double() @ hidden[0].double() - rough[:400]).abs() <= bound[:400]).all()
    assert (bound[400:] == -torch.inf).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 4), limit=st.floats(-3, 3))
def test_groups_miss_nothing_that_reaches_the_limit(seed: int, groups: int, limit: float) -> None:
    values = torch.randn(groups * 256, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(_reaching(values, limit), (values >= limit).nonzero()[:, 0])


def test_outside_of_greedy_search_every_number_is_exact() -> None:
    made = linear(400, 64, 3)
    head, hidden = Head(made), torch.randn(1, 1, 64)
    expected = made(hidden)
    assert torch.allclose(head(hidden), expected, rtol=1e-5, atol=1e-4)
    with largest_only():
        assert head(hidden).argmax() == expected.argmax()
        several = torch.randn(1, 5, 64)
        assert torch.allclose(head(several), made(several), rtol=1e-5, atol=1e-4), "a batch reads the weights once"
    assert torch.allclose(head(hidden), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_stays_visible(broken: float) -> None:
    hidden = torch.ones(1, 64)
    hidden[0, 5] = broken
    assert not torch.isfinite(Screen(linear(400, 64, 1).weight, torch.randn(1, 64)).logits(hidden)).all()


def test_the_way_is_chosen_by_measured_time() -> None:
    time = iter(range(10_000))
    spent: list[int] = []

    def clock() -> float:
        return float(next(time) + sum(spent))

    def slow(x: torch.Tensor) -> torch.Tensor:
        spent.append(1)
        return x

    assert faster(lambda x: x, slow, torch.ones(1), clock)
    assert not faster(slow, lambda x: x, torch.ones(1), clock)
