"""Names and limits of CUDA targets, and what is refused with a reason."""

import pytest

from tests.cuda.programs import save_matmul
from tilewright import api
from tilewright.compiler.cuda.nvcc import find_nvcc
from tilewright.compiler.cuda.targets import (
    list_cuda_targets,
    parse_cuda_target,
)
from tilewright.compiler.targets import parse_target
from tilewright.errors import CompileError, TargetError


@pytest.mark.parametrize("name", list_cuda_targets())
def test_a_target_has_the_limits_of_its_architecture(name):
    target = parse_cuda_target(name)
    major, minor = target.capability
    assert target.name == f"cuda:sm_{major}{minor}"
    assert target.block_shared_bytes < target.shared_bytes
    assert target.macs_per_second("fp16") > target.macs_per_second("fp32")


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(TargetError, match=r"'cuda:sm_35'; known CUDA targets: cuda:sm_80"):
        parse_cuda_target("cuda:sm_35")


def test_a_command_for_processors_refuses_a_gpu():
    with pytest.raises(TargetError, match="'cuda:sm_90' is not a processor"):
        parse_target("cuda:sm_90")


def test_targets_lists_gpus_last():
    names = [target["name"] for target in api.targets()]
    assert tuple(names[-len(list_cuda_targets()) :]) == list_cuda_targets()


def test_a_missing_nvcc_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("tilewright.compiler.cuda.nvcc.find_tool", lambda _name: None)
    with pytest.raises(TargetError, match=r"no nvcc found .* pip install 'tilewright\[cuda\]'"):
        find_nvcc()
    with pytest.raises(TargetError, match="no nvcc found"):
        api.compile(save_matmul(tmp_path), "cuda:sm_90")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'; known precisions: fp32, tf32"),
        ({"format": "c"}, "format 'c' is for processors"),
        ({"integer_only": True}, "--integer-only is for processors"),
        ({"dump_ir": "ir"}, "--dump-ir is for processors"),
        ({"precision": "int8"}, "precision int8 needs a quantized model"),
    ],
)
def test_what_a_gpu_does_not_have_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("tilewright.compiler.cuda.nvcc.find_nvcc", lambda: tmp_path)
    with pytest.raises((TargetError, CompileError), match=message):
        api.compile(save_matmul(tmp_path), "cuda:sm_90", **options)


def test_a_processor_refuses_a_precision(tmp_path):
    with pytest.raises(TargetError, match="precision 'fp16' is for CUDA targets"):
        api.compile(save_matmul(tmp_path), "x86-64-v3", precision="fp16")
