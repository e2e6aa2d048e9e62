"""What Ansor is asked: tune an operator or a model, load the best of a log, run and time it."""

import os
import time

import numpy as np
import operators
import tvm
from tvm import auto_scheduler, relay
from tvm.auto_scheduler import LayoutRewriteOption

BUILD_TIMEOUT_S = 60
RUN_TIMEOUT_S = 20
# A round costs a search through 2048 candidates, about 90 s of one core, however few it measures.
ROUND_TRIALS = 32


class Session:
    """One thing loaded at a time; methods are the requests."""

    def __init__(self, progress):
        self.progress = progress
        self.call = None

    def describe(self):
        """Return versions and target."""
        return {"tvm": tvm.__version__, "llvm": tvm.target.codegen.llvm_version_major()}

    def tune(self, operator, layout, trials, log, threads, population=2048):
        """Measure until the log holds `trials` records of the operator; return how it went.

        `population` is how many candidates a round looks at; the default is Ansor's own.
        """
        task = _task(operator, layout, threads)
        known = [(i, r) for i, r in _records(log) if i.task.workload_key == task.workload_key]
        start = time.time()
        if len(known) < trials:
            # By default the model ranks nothing before the hundredth record.
            model = auto_scheduler.XGBModel(num_warmup_sample=min(100, trials // 2))
            callbacks = []
            if known:
                model.update_from_file(log)
                callbacks = [auto_scheduler.PreloadMeasuredStates(log)]
            parameters = auto_scheduler.SketchPolicy.DEFAULT_PARAMS
            policy = auto_scheduler.SketchPolicy(
                task,
                model,
                {**parameters, "evolutionary_search_population": population},
                verbose=0,
                init_search_callbacks=callbacks,
            )
            task.tune(_options(trials - len(known), log, self.progress), policy)
        return {"records": curve(log, task.workload_key), "seconds": time.time() - start}

    def tune_model(self, model, shapes, layout, trials, log, threads):
        """Tune every task of an ONNX model, `trials` in all and together with those in the log."""
        module, parameters = _relay(model, shapes, layout)
        tasks, weights = auto_scheduler.extract_tasks(module["main"], parameters, _target(threads))
        known = len(_records(log))
        start = time.time()
        if known < trials:
            reload = {"load_log_file": log} if known else {}
            scheduler = auto_scheduler.TaskScheduler(tasks, weights, **reload)
            scheduler.tune(_options(trials - known, log, self.progress))
        return {"tasks": len(tasks), "seconds": time.time() - start}

    def load(self, operator, layout, log, threads, inputs, outputs):
        """Build the best program of a log, run it on the arrays in `inputs`, write `outputs`.

        The answer comes from the program that packs the weight by itself; what is timed takes the
        weight packed, as in a network, where it is a constant.
        """
        task = _task(operator, layout, threads)
        best, _ = auto_scheduler.load_best_record(log, task.workload_key)
        if best is None:
            raise RuntimeError(f"{log} holds no valid record of this operator; tune it first")
        arrays = np.load(inputs)
        given = operators.arguments(
            operator, layout, arrays["data"], arrays["weight"], arrays["bias"]
        )
        run, tensors, _ = _build(
            task, best.state, LayoutRewriteOption.INSERT_TRANSFORM_STAGE, given
        )
        run(*tensors)
        np.savez(outputs, output=operators.output(operator, layout, tensors[-1].numpy()))
        packed = LayoutRewriteOption.REWRITE_FOR_PRE_TRANSFORMED
        run, tensors, shapes = _build(task, best.state, packed, given)
        self.call = lambda: run(*tensors)
        return {"shapes": shapes, "records": curve(log, task.workload_key)}

    def load_model(self, model, shapes, layout, log, threads, inputs, outputs):
        """Build an ONNX model by the best records of a log, run it and write its outputs."""
        from tvm.contrib import graph_executor

        module, parameters = _relay(model, shapes, layout)
        config = {"relay.backend.use_auto_scheduler": True}
        with auto_scheduler.ApplyHistoryBest(log), tvm.transform.PassContext(3, config=config):
            library = relay.build(module, target=_target(threads), params=parameters)
        executor = graph_executor.GraphModule(library["default"](tvm.cpu()))
        for name, array in np.load(inputs).items():
            executor.set_input(name, array)
        executor.run()
        count = executor.get_num_outputs()
        np.savez(outputs, *(executor.get_output(i).numpy() for i in range(count)))
        self.call = executor.run
        return {"outputs": count}

    def sample(self, repeats, clock):
        """Call what is loaded `repeats` times; return seconds of one call."""
        now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        start = now()
        for _ in range(repeats):
            self.call()
        return (now() - start) / repeats


def curve(log, workload_key):
    """Return [seconds of a call or None, seconds of the trial] of each record, as measured."""
    found = []
    for measured, result in _records(log):
        if measured.task.workload_key == workload_key:
            costs = [float(cost) for cost in result.costs]
            valid = result.error_no == 0 and costs
            found.append([float(np.median(costs)) if valid else None, float(result.all_cost)])
    return found


def _records(log):
    if not os.path.exists(log):
        return []
    return list(auto_scheduler.load_records(log))


def _task(operator, layout, threads):
    return auto_scheduler.SearchTask(
        func="tilewright_operator",
        args=(operators.canonical(operator), layout),
        target=_target(threads),
        layout_rewrite_option=LayoutRewriteOption.REWRITE_FOR_PRE_TRANSFORMED,
    )


def _target(threads):
    """Return the newest processor that this LLVM (10) knows and that this machine includes."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    if "avx512_vnni" in flags:
        name = "cascadelake"
    elif "avx512f" in flags:
        name = "skylake-avx512"
    else:
        name = "core-avx2"
    return tvm.target.Target(f"llvm -mcpu={name} -num-cores={threads}")


def _options(trials, log, progress):
    class Report(auto_scheduler.measure.PythonBasedMeasureCallback):
        def callback(self, policy, inputs, results):
            progress(measured=len(results))

    return auto_scheduler.TuningOptions(
        num_measure_trials=trials,
        num_measures_per_round=min(ROUND_TRIALS, trials),
        builder=auto_scheduler.LocalBuilder(timeout=BUILD_TIMEOUT_S),
        runner=auto_scheduler.LocalRunner(
            timeout=RUN_TIMEOUT_S, number=1, repeat=3, min_repeat_ms=50
        ),
        measure_callbacks=[auto_scheduler.RecordToFile(log), Report()],
        verbose=0,
    )


def _build(task, state, option, given):
    """Return a function, its arrays (output last) and their shapes for a state of the search."""
    schedule, tensors = task.compute_dag.apply_steps_from_state(state, option)
    function = tvm.build(schedule, tensors, task.target)
    arrays = []
    for tensor, value in zip(tensors, [*given, None], strict=True):
        shape = [int(extent) for extent in tensor.shape]
        if value is None:
            value = np.zeros(shape, "float32")
        elif list(value.shape) != shape:
            # Packed: the same values in some order, which is all that timing needs.
            value = np.resize(value, shape)
        arrays.append(tvm.nd.array(value.astype("float32"), tvm.cpu()))
    return function, arrays, [list(array.shape) for array in arrays]


def _relay(path, shapes, layout):
    import onnx

    model = onnx.load(path)
    module, parameters = relay.frontend.from_onnx(model, shapes, freeze_params=True)
    if layout == "NHWC":
        wanted = {
            "nn.conv2d": ["NHWC", "default"],
            "nn.conv3d": ["NDHWC", "default"],
            "nn.max_pool2d": ["NHWC"],
            "nn.global_avg_pool2d": ["NHWC"],
        }
        passes = [
            relay.transform.InferType(),
            relay.transform.SimplifyInference(),
            relay.transform.ConvertLayout(wanted),
            relay.transform.FoldConstant(),
        ]
        with tvm.transform.PassContext(opt_level=3):
            module = tvm.transform.Sequential(passes)(module)
    return module, parameters
