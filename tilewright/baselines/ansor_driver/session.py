"""What Ansor is asked: tune an operator or a model, load the best of a log, run and time it."""

import os
import resource
import time

import numpy as np
import operators
import products
import tvm
from tvm import auto_scheduler, relay
from tvm.auto_scheduler import LayoutRewriteOption

products.install()

BUILD_TIMEOUT_S = 60
RUN_TIMEOUT_S = 20
# A round costs a search through 2048 candidates, about 90 s of one core, however few it measures.
ROUND_TRIALS = 32
BLIND_POPULATION = 256
POPULATION = auto_scheduler.SketchPolicy.DEFAULT_PARAMS["evolutionary_search_population"]
# Ansor's own is 100: with fewer trials its model would never be asked.
MODEL_FROM_RECORDS = 16


class Session:
    """One thing loaded at a time; methods are the requests."""

    def __init__(self, progress):
        self.progress = progress
        self.call = None

    def describe(self):
        """Return the versions."""
        llvm = tvm.target.codegen.llvm_version_major()
        return {"tvm": tvm.__version__, "llvm": llvm}

    def tune(self, operator, layout, processor, threads, log, trials):
        """Measure up to `trials` more candidates of the operator; return how many its log holds.

        The first round is chosen by a model that knows nothing yet. To let it rank Ansor's 2048
        candidates would only take time: it looks at `BLIND_POPULATION`.
        """
        task = _task(operator, layout, _target(processor, threads))
        known = len(_records(log, task))
        first = min(ROUND_TRIALS, trials) if not known else 0
        if first:
            _search(task, log, first, BLIND_POPULATION, self.progress)
        if trials > first:
            _search(task, log, trials - first, POPULATION, self.progress)
        return {"records": len(_records(log, task))}

    def tune_model(self, model, shapes, layout, processor, threads, log, trials, limit):
        """Measure up to `trials` more candidates of the tasks of an ONNX model, `limit` in all.

        Half of the limit goes to all tasks alike, for which few candidates are looked at: Ansor's
        own scheduler asks no model before every task had its round. What is left goes to the tasks
        that have most to gain, in rounds that are searched for as thoroughly as Ansor does.

        Args:
            limit: 0 for none; then every task has half a round at first, whatever `trials` is.
        """
        target = _target(processor, threads)
        module, parameters = _relay(model, shapes, layout)
        tasks, weights = auto_scheduler.extract_tasks(module["main"], parameters, target)
        share = limit // 2 // len(tasks) if limit else ROUND_TRIALS // 2
        share = max(1, min(share, ROUND_TRIALS))
        end = limit or max(len(_records(log)) + trials, share * len(tasks))
        for until, round_trials, candidates in (
            (min(end, share * len(tasks)), share, BLIND_POPULATION),
            (end, ROUND_TRIALS, POPULATION),
        ):
            if len(_records(log)) < until:
                scheduler = _Scheduler(tasks, weights, log)
                policies = _policies(tasks, log, candidates)
                scheduler.tune(_options(until, log, self.progress, round_trials), policies)
        return {"tasks": len(tasks), "records": len(_records(log))}

    def curve(self, operator, layout, processor, threads, log):
        """Return [seconds of a call or None, seconds of the trial] of each record, as measured."""
        return _curve(log, _task(operator, layout, _target(processor, threads)))

    def curve_model(self, log):
        """Return the same of a model's log, whatever task each record is of."""
        return _curve(log)

    def load(self, operator, layout, processor, threads, log, keep, inputs, outputs):
        """Build the best program of the first `keep` records, run it on `inputs`, write `outputs`.

        The answer comes from the program that packs the weight by itself; what is timed takes the
        weight packed, as in a network, where it is a constant.
        """
        task = _task(operator, layout, _target(processor, threads))
        valid = [(i, r) for i, r in _records(log, task)[:keep] if r.error_no == 0]
        if not valid:
            raise RuntimeError(f"{log} holds no valid record of this operator; tune it first")
        best, _ = min(valid, key=lambda pair: np.median([float(c) for c in pair[1].costs]))
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
        return {"shapes": shapes}

    def load_model(self, model, shapes, layout, processor, threads, log, keep, inputs, outputs):
        """Build an ONNX model by the first `keep` records of a log, run it, write its outputs."""
        from tvm.contrib import graph_executor

        module, parameters = _relay(model, shapes, layout)
        target = _target(processor, threads)
        config = {"relay.backend.use_auto_scheduler": True}
        history = auto_scheduler.ApplyHistoryBest(_records(log)[:keep])
        with history, tvm.transform.PassContext(3, config=config):
            library = relay.build(module, target=target, params=parameters)
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


class _Scheduler(auto_scheduler.TaskScheduler):
    """Ansor's task scheduler, whose number of trials includes those of the log."""

    def __init__(self, tasks, weights, log):
        # Its own callbacks print a table and write a file where the process happens to run.
        super().__init__(tasks, weights, load_log_file=log if _records(log) else None, callbacks=[])

    def _restore_status(self, log_file, num_measures_per_round):
        super()._restore_status(log_file, num_measures_per_round)
        self.ct = len(_records(log_file))
        # It counts rounds of today's size: less than half of one is none, and begun again.
        for index, best in enumerate(self.best_costs):
            if best < 1e10:
                self.task_cts[index] = max(1, self.task_cts[index])


def _search(task, log, trials, population, progress):
    """Measure `trials` more candidates of a task, with what its log has taught the model."""
    (policy,) = _policies([task], log, population, task)
    task.tune(_options(trials, log, progress), policy)


def _policies(tasks, log, population, task=None):
    """Return a search for each task, with one model that learns from the log, or a task's in it."""
    model = auto_scheduler.XGBModel(num_warmup_sample=MODEL_FROM_RECORDS, verbose_eval=0)
    callbacks = []
    if _records(log, task):
        model.update_from_file(log)
        callbacks = [auto_scheduler.PreloadMeasuredStates(log)]
    parameters = dict(auto_scheduler.SketchPolicy.DEFAULT_PARAMS)
    parameters["evolutionary_search_population"] = population
    return [
        auto_scheduler.SketchPolicy(
            each, model, parameters, verbose=0, init_search_callbacks=callbacks
        )
        for each in tasks
    ]


def _curve(log, task=None):
    found = []
    for _, result in _records(log, task):
        times = [float(cost) for cost in result.costs]
        valid = result.error_no == 0 and times
        found.append([float(np.median(times)) if valid else None, float(result.all_cost)])
    return found


def _processor_seconds():
    """Return what this process and its workers that have ended have computed."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _records(log, task=None):
    """Return the records of a log; of one task on its target, where given."""
    if not os.path.exists(log):
        return []
    found = list(auto_scheduler.load_records(log))
    if task is None:
        return found
    key = (task.workload_key, str(task.target))
    return [(i, r) for i, r in found if (i.task.workload_key, str(i.task.target)) == key]


def _task(operator, layout, target):
    return auto_scheduler.SearchTask(
        func="tilewright_operator",
        args=(operators.canonical(operator), layout),
        target=target,
        layout_rewrite_option=LayoutRewriteOption.REWRITE_FOR_PRE_TRANSFORMED,
    )


def _target(processor, threads):
    return tvm.target.Target(f"llvm -mcpu={processor} -num-cores={threads}")


def _options(trials, log, progress, round_trials=ROUND_TRIALS):
    before = time.time(), _processor_seconds()

    class Report(auto_scheduler.measure.PythonBasedMeasureCallback):
        def callback(self, policy, inputs, results):
            nonlocal before
            now = time.time(), _processor_seconds()
            wall_s, processor_s = now[0] - before[0], now[1] - before[1]
            before = now
            progress(trials=len(results), wall_s=wall_s, processor_s=processor_s)

    return auto_scheduler.TuningOptions(
        num_measure_trials=trials,
        num_measures_per_round=min(round_trials, trials),
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
    """Import a model; exp, erf and tanh are approximated, as in operators: C's are not vectors."""
    import onnx

    model = onnx.load(path)
    module, parameters = relay.frontend.from_onnx(model, shapes, freeze_params=True)
    passes = [relay.transform.InferType(), relay.transform.SimplifyInference()]
    if layout == "NHWC":
        wanted = {
            "nn.conv2d": ["NHWC", "default"],
            "nn.conv3d": ["NDHWC", "default"],
            "nn.max_pool2d": ["NHWC"],
            "nn.global_avg_pool2d": ["NHWC"],
        }
        passes += [relay.transform.ConvertLayout(wanted), relay.transform.FoldConstant()]
    with tvm.transform.PassContext(opt_level=4):
        module = tvm.transform.Sequential([*passes, relay.transform.FastMath()])(module)
    return module, parameters
