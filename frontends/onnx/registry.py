"""The table of converters: (domain, operator) -> functions by the opset since which they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tilewright.frontends.onnx.values import Value

if TYPE_CHECKING:
    from tilewright.frontends.onnx.node import NodeContext

Result: TypeAlias = Value | list[Value] | Sequence["Value | list[Value] | None"]
Convert: TypeAlias = "Callable[[NodeContext], Result]"
ConvertT = TypeVar("ConvertT", bound="Callable[[NodeContext], Result]")


@dataclass(frozen=True, slots=True)
class Converter:
    """One converter and what the importer must know about its operator."""

    convert: Convert
    since: int
    foldable: bool  # may be evaluated by ONNX's reference when every input is constant
    shape_inputs: tuple[int, ...]  # inputs that must be known when compiling


BoundedRule: TypeAlias = "Callable[[NodeContext, Convert], Result]"
RuleT = TypeVar("RuleT", bound="Callable[[NodeContext, Convert], Result]")

_BOUNDED_RULES: dict[str, BoundedRule] = {}
_CONVERTERS: dict[tuple[str, str], dict[int, Converter]] = {}


def register(
    operator: str,
    since: int = 1,
    *,
    domain: str = "",
    foldable: bool = True,
    shape_inputs: Sequence[int] = (),
) -> Callable[[ConvertT], ConvertT]:
    """Register a converter for an operator from one opset version on.

    Args:
        operator: ONNX operator type.
        since: First opset version (of the domain) with this meaning.
        domain: Operator domain; empty for ``ai.onnx``.
        foldable: Whether constant inputs may be folded with ONNX's reference implementation;
            False for random and control-flow operators, and for slow references.
        shape_inputs: Inputs such as shapes, axes and ``k`` that decide the shape of the output;
            they must be constants, and a caller may specialise a model for them.
    """

    def add(convert: ConvertT) -> ConvertT:
        versions = _CONVERTERS.setdefault((domain, operator), {})
        if since in versions:
            raise ValueError(f"two converters for {domain}::{operator} since opset {since}")
        versions[since] = Converter(convert, since, foldable, tuple(shape_inputs))
        return convert

    return add


def bounded_rule(*operators: str) -> Callable[[RuleT], RuleT]:
    """Register how operators of ai.onnx treat inputs whose size depends on data.

    A rule gets the node and the operator's converter, which does not know of such inputs: the rule
    calls it with `plain` or `masked` ones, and says what sizes the results have.
    """

    def add(rule: RuleT) -> RuleT:
        for operator in operators:
            if operator in _BOUNDED_RULES:
                raise ValueError(f"two rules for sizes that depend on data for {operator}")
            _BOUNDED_RULES[operator] = rule
        return rule

    return add


def find_bounded_rule(domain: str, operator: str) -> BoundedRule | None:
    """Return the rule for inputs whose size depends on data, or None."""
    return None if domain else _BOUNDED_RULES.get(operator)


def bounded_operators() -> tuple[str, ...]:
    """Return the operators that have such a rule."""
    return tuple(sorted(_BOUNDED_RULES))


def find_converter(domain: str, operator: str, opset: int) -> Converter | None:
    """Return the newest converter that is not newer than ``opset``, or None."""
    versions = _CONVERTERS.get((domain, operator), {})
    usable = [since for since in versions if since <= opset]
    return versions[max(usable)] if usable else None


def registered_operators() -> dict[tuple[str, str], tuple[int, ...]]:
    """Return every (domain, operator) with the opset versions of its converters."""
    return {key: tuple(sorted(versions)) for key, versions in sorted(_CONVERTERS.items())}
