"""The command line: one verb a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from tyro.conf import Positional

from distblock.config import Config, make_config
from distblock.consoles import for_tables
from distblock.ending import until_its_end
from distblock.errors import InputError, RunFailedError
from distblock.flags import check_folder, read_settings

if TYPE_CHECKING:
    from distblock.runs import RunDirectory

HELP = """usage: distblock VERB [...]

  train      train a network; without arguments: a small residual network on scikit-learn's digits
  resume     go on with a run that was cut short, from its newest checkpoint
  evaluate   measure a run's stages again; accuracy against compute with early exits
  predict    classes of images, each by the first stage that is sure enough
  export     write a run's weights as one file, or its network as ONNX
  report     runs as one page of HTML, with pictures
  why        what holds a run back, by how many seconds, and what would change
  compare    several settings under equal budgets, over seeds: what a point of accuracy costs
  tune       search settings on the validation part, with early stopping
  plan       find the stages, workers and codecs with the highest throughput, before anything runs
  verify     check a network and its settings on a few microbatches, before hours are spent
  submit     train as a job of a Ray cluster, from a machine that is no part of it
  jobs       list a cluster's jobs
  stop       stop a job
  bench      the benchmarks behind the README's figures

distblock VERB --help says more."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The user's own networks and data are named by import path, as seen from where the command runs.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    sys.exit(until_its_end(lambda: _run(words)))


def train(arguments: Sequence[str]) -> None:
    """``distblock train [--config run.yaml] [--key value ...]``."""
    if _wants_help(arguments):
        _print_train_help()
        return
    _train(_configuration(arguments))


def resume(arguments: Sequence[str]) -> None:
    """``distblock resume RUN [--KEY VALUE ...]``: the run's settings, and those that may change."""
    if _wants_help(arguments):
        print(
            "usage: distblock resume RUN [--KEY VALUE ...]\n\n  Goes on with a run that was cut short. Settings that do"
            " not change what is trained may be given anew:\n  --address, --resources.*, --recovery.*, --checkpoint.*,"
            " --metrics.*, and, where all stages train at once,\n  --model.cuts or --model.stages."
        )
        return
    if not arguments or arguments[0].startswith("--"):
        raise InputError("resume: expected a run's directory, got nothing")
    from distblock.flags import merge, parse_flags

    run, *flags = arguments
    given = {**parse_flags(flags), "run_dir": run, "resume": True}
    _train(make_config(merge(_directory(run).read_config().model_dump(), given)))


def _train(config: Config) -> None:
    _show_token(config.address)
    from distblock.report.tables import edges_table, hops_table, size, stages_table
    from distblock.training import Training

    trained = Training(config).run()
    summary = trained.summary
    console = for_tables()
    console.print(stages_table(summary))
    if summary["edges"]:
        console.print(edges_table(summary))
        if any(edge["sizes"] for edge in summary["edges"]):
            console.print(hops_table(summary))
    if summary["inputs"] is not None:
        what = {"cache": "caches of outputs", "frozen": "frozen copies of weights"}[summary["inputs"]]
        console.print(f"{what}: at most {size(summary['set_aside_peak_bytes'])} at once")
    if summary["droppable_stages"]:
        console.print(f"add nothing on validation, left out by export: stages {summary['droppable_stages']}")
    console.print(
        f"best stage on validation: {summary['best_stage']}   its test accuracy: {summary['test_accuracy']:.2%}   "
        f"{summary['wall_s']:.1f} s, {summary['samples_per_s']:.0f} samples/s   run: {trained.directory.root}",
        soft_wrap=True,
    )


def evaluate(
    run: Positional[str],
    part: Literal["validation", "test"] = "test",
    path: str | None = None,
    early_exit: bool = False,
    picture: str | None = None,
) -> None:
    """Measure every stage of a run again.

    Args:
        run: the run's directory.
        part: which part of the data.
        path: where the data lies now, if it has moved.
        early_exit: accuracy against compute where sure stages answer, accuracy by class, and the confusion matrix.
        picture: with early_exit: draw accuracy against compute as SVG here.
    """
    if early_exit:
        if part != "test":
            raise InputError(
                "--part: expected test beside --early-exit, which chooses on validation and measures on both parts, got"
                f" {part}; leave it out"
            )
        _evaluate_early_exit(run, path, picture)
        return
    if picture is not None:
        raise InputError("--picture: expected --early-exit beside it, got it alone; add --early-exit")
    from distblock.evaluation import evaluate_run
    from distblock.report.tables import evaluation_table

    rows, best_stage = evaluate_run(_directory(run), part=part, path=path)
    console = for_tables()
    console.print(evaluation_table(rows, part=part, best_stage=best_stage))
    console.print(f"stage {best_stage}, chosen on validation: {part} accuracy {rows[best_stage].accuracy:.2%}")


def _evaluate_early_exit(run: str, path: str | None, picture: str | None) -> None:
    from distblock.inference.early_exit import evaluate_early_exit
    from distblock.report.early_exits import class_table, confusion_table, draw_curve, early_exit_table

    if picture is not None:
        check_folder(picture, where="--picture")
    found = evaluate_early_exit(_directory(run), path=path)
    console = for_tables()
    console.print(early_exit_table(found))
    console.print(class_table(found))
    console.print(confusion_table(found))
    if picture is not None:
        Path(picture).write_text(draw_curve(found))


def predict(
    run: Positional[str],
    data: Positional[tuple[str, ...]],
    to: str = "predictions.parquet",
    stage: int | None = None,
    exit_confidence: float | None = None,
    exit_stages: tuple[int, ...] | None = None,
    exit_accuracy: float | None = None,
    calibrated: bool = False,
) -> None:
    """Predict images: class, probability and the stage that answered, as a Parquet file.

    Args:
        run: the run's directory.
        data: a folder with images, a Parquet file, or image files.
        to: the file to write.
        stage: the last stage that answers; default: the one chosen on validation.
        exit_confidence: an earlier stage answers if its probability is this or more; default: none does.
        exit_stages: these alone may answer early; default: all.
        exit_accuracy: choose both so that this accuracy is kept on validation (evaluate --early-exit first).
        calibrated: correct probabilities by the temperatures that fit validation (evaluate --early-exit first).
    """
    from distblock.inference.prediction import Wish
    from distblock.inference.prediction import predict as predict_images

    wish = Wish(
        stage=stage,
        confidence=exit_confidence,
        asked=exit_stages,
        accuracy=exit_accuracy,
        is_calibrated=calibrated,
    )
    found = predict_images(_directory(run), data, to=to, wish=wish)
    console = for_tables()
    console.print(f"{to}: {found.table.num_rows} images", soft_wrap=True)
    console.print(found.answered, soft_wrap=True)


def export(
    run: Positional[str],
    to: str,
    stage: int | None = None,
    classifier: bool = False,
    exits: bool = False,
) -> None:
    """Write the network up to a stage: its weights under its own names (.safetensors), or a whole model (.onnx).

    Args:
        run: the run's directory.
        to: the file to write; its ending says what: .onnx, or anything else for safetensors.
        stage: the last stage to include; default: the one chosen on validation.
        classifier: safetensors: include that stage's auxiliary classifier, under ``classifier.``; ONNX always has it.
        exits: ONNX: an output for the classifier of every stage on the way.
    """
    if to.endswith(".onnx"):
        from distblock.inference.onnx_export import export_onnx

        outputs = export_onnx(_directory(run), to=to, stage=stage, with_exits=exits)
        for_tables().print(f"{to}: from images scaled to 0..1 to {', '.join(outputs)}", soft_wrap=True)
        return
    if exits:
        raise InputError(f"--exits: expected an .onnx file to write, got {to}; choose another ending")
    from distblock.evaluation import export_run

    num_tensors, last = export_run(_directory(run), to=to, stage=stage, classifier=classifier)
    for_tables().print(f"{to}: {num_tensors} tensors, stages 0 to {last}")


def report(runs: Positional[tuple[str, ...]], to: str | None = None) -> None:
    """Write runs, side by side, as one page of HTML that needs no network.

    Args:
        runs: directories of runs.
        to: the file; default: report.html in the run's directory, or here where there are several.
    """
    if not runs:
        raise InputError("report: expected the directory of a run or several, got none")
    from distblock.pages import report as write_report

    print(write_report([_directory(run) for run in runs], to=to))


def why(run: Positional[str], json: bool = False) -> None:
    """Say what holds a run back: the run told again from what was measured, with one part of it made quick.

    Where that cannot be (sequential, multi-lap, wavefront and asynchronous regimes, the plain loop), where each
    worker's time went.

    Args:
        run: the run's directory; of one under way also its exporter, such as http://127.0.0.1:9400.
        json: as JSON.
    """
    from distblock import reasons

    if run.startswith(("http://", "https://")):
        print(reasons.why_at(run, as_json=json))
    else:
        print(reasons.why(_directory(run), as_json=json))


def plan(arguments: Sequence[str]) -> None:
    """``distblock plan [--seats SPEC ...] [--KEY VALUE ...]``."""
    from distblock import plans
    from distblock.planning import request

    if _wants_help(arguments):
        print(request.USAGE)
        return
    plans.main(arguments, for_tables())


def bench(arguments: Sequence[str]) -> None:
    """``distblock bench pipeline [...]``."""
    from distblock.bench import main as bench_main

    bench_main(arguments)


def verify(arguments: Sequence[str]) -> None:
    """``distblock verify [--config run.yaml] [--key value ...]``: the settings of ``train``."""
    if _wants_help(arguments):
        print("usage: distblock verify [--config FILE.yaml] [--KEY VALUE ...]    (the settings of distblock train)")
        return
    config = _configuration(arguments)
    _show_token(config.address)
    from distblock.preparation import resolve
    from distblock.verification import verify as findings

    console = for_tables()
    num_faults = 0
    for finding in findings(resolve(config)):
        num_faults += len(finding.faults)
        console.print(f"{'FAULT' if finding.faults else 'ok   '}  {finding.check}  ({finding.shown})", soft_wrap=True)
        for fault in finding.faults:
            console.print(f"       {fault}", soft_wrap=True, markup=False, highlight=False)
    if num_faults:
        raise RunFailedError(f"verify: {num_faults} faults, named above")


def tune(arguments: Sequence[str]) -> None:
    """``distblock tune --search KEY=RANGE ... [--KEY VALUE ...]``."""
    words = [part for word in arguments for part in word.split("=", 1)]
    _show_token(words[words.index("--address") + 1] if "--address" in words[:-1] else None)
    from distblock.tuning import main as tune_main

    tune_main(arguments)


def compare(arguments: Sequence[str]) -> None:
    """``distblock compare A.yaml B.yaml ... [--seeds N] [--KEY VALUE ...]``."""
    from distblock.comparison import main as compare_main

    compare_main(arguments)


def submit(arguments: Sequence[str]) -> int:
    """``distblock submit --address http://HEAD:8265 [--follow] -- [--KEY VALUE ...]``."""
    from distblock.submission import submit as submit_job

    return submit_job(arguments)


def jobs(arguments: Sequence[str]) -> int:
    """``distblock jobs --address http://HEAD:8265``."""
    from distblock.submission import jobs as list_jobs

    return list_jobs(arguments)


def stop(arguments: Sequence[str]) -> int:
    """``distblock stop JOB --address http://HEAD:8265``."""
    from distblock.submission import stop as stop_job

    return stop_job(arguments)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        from distblock.version import __version__

        print(__version__)
        return 0
    return _dispatch(words[0], words[1:]) or 0


def _dispatch(verb: str, arguments: list[str]) -> int | None:
    """The verb's exit status, where it has one beside 0."""
    typed = {"evaluate": evaluate, "predict": predict, "export": export, "report": report, "why": why}
    plain: dict[str, Callable[[Sequence[str]], int | None]] = {
        **{"train": train, "resume": resume, "compare": compare, "tune": tune, "verify": verify, "plan": plan},
        **{"submit": submit, "jobs": jobs, "stop": stop, "bench": bench},
    }
    if verb in plain:
        return plain[verb](arguments)
    if verb in typed:
        tyro.cli(typed[verb], args=arguments, prog=f"distblock {verb}")
        return None
    raise InputError(f"{verb}: expected one of {', '.join([*plain, *typed])}; see distblock --help")


def _show_token(address: str | None) -> None:
    """Ray reads whether to show a token when it is imported, so this comes before."""
    if address is not None:
        from distblock.runtime.tokens import use_token

        use_token(address)


def _configuration(arguments: Sequence[str]) -> Config:
    return make_config(read_settings(arguments))


def _directory(location: str) -> RunDirectory:
    from distblock.runs import RunDirectory

    return RunDirectory.at(location)


def _wants_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _print_train_help() -> None:
    print("usage: distblock train [--config FILE.yaml] [--KEY VALUE ...]    (flags go over the file)\n")
    tyro.cli(Config, args=["--help"], prog="distblock train")
