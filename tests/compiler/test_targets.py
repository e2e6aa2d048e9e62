"""Target descriptions: names, this machine, and the way to LLVM."""

import json
from pathlib import Path

import pytest

from tilewright.compiler.targets import Target, list_targets, parse_target
from tilewright.errors import TargetError


@pytest.mark.parametrize("name", list_targets())
def test_every_listed_target_parses_and_round_trips(name):
    target = parse_target(name)
    assert target.name == name
    assert Target.from_json(target.to_json()) == target
    assert target.l1_bytes < target.l2_bytes < target.l3_bytes


def test_native_matches_what_this_processor_reports():
    target = parse_target("native")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    assert set(target.features) <= set(flags)
    assert (target.vector_bits == 512) == ("avx512vl" in flags)
    assert target.cores >= 1


@pytest.mark.parametrize(
    ("name", "dtype", "lanes"),
    [("x86-64-v3", "float32", 8), ("x86-64-v4", "float32", 16), ("x86-64-v4", "int8", 64)],
)
def test_lanes_follow_vector_width_and_dtype(name, dtype, lanes):
    assert parse_target(name).lanes(dtype) == lanes


def test_tvm_target_allows_only_the_listed_features():
    attributes = set(map(str, parse_target("x86-64-v4").tvm_target().attrs["mattr"]))
    assert {"+avx512f", "-avx512vnni", "-prefer-256-bit"} <= attributes
    assert "-avx512f" in set(map(str, parse_target("x86-64-v3").tvm_target().attrs["mattr"]))


def test_unknown_target_lists_the_known_names():
    with pytest.raises(TargetError, match=r"unknown target 'pdp11'.*x86-64-v3"):
        parse_target("pdp11")


def test_from_json_refuses_what_is_not_a_target():
    with pytest.raises(TargetError, match="is not JSON"):
        Target.from_json("{")
    fields = json.loads(parse_target("x86-64-v3").to_json())
    del fields["cores"]
    with pytest.raises(TargetError, match="expected"):
        Target.from_json(json.dumps(fields))
