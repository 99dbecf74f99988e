"""Tables from stored results: what the README shows is what a command wrote under data/results/."""

import re
from pathlib import Path

import numpy as np

from . import claims, plots
from .checkpoint import read_arrays
from .protocols import MODELS, PAPER, TITLES, read_result


def load_results(folder, benchmark, protocol):
    """{model: [result, ...]} of every stored run, sorted by seed. Raises ValueError naming a file that is no result."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        result = read_result(path)
        key, seed = (result["benchmark"], result["protocol"], result["model"]), result["seed"]
        if key[:2] == (benchmark, protocol):
            found.setdefault(key[2], []).append((seed, result))
    return {model: [result for _, result in sorted(runs, key=lambda run: run[0])] for model, runs in found.items()}


def results_table(folder, benchmark, protocol):
    """Markdown table with a row per stored run, beside the paper's numbers, and the machines they ran on."""
    results = load_results(folder, benchmark, protocol)
    rows = _language_rows(results) if benchmark.startswith("wikitext") else _image_rows(results, PAPER[benchmark])
    machines = {_machine(run["machine"]) for runs in results.values() for run in runs}
    return "\n".join([*map(_row, rows), "", f"Measured on: {'; '.join(sorted(machines))}."])


def _language_rows(results):
    """Perplexities of words, with the unigram model's beside them: what one gets for knowing no context."""
    head = ("model", "valid perplexity", "test perplexity", "unigram, test", "test accuracy", "parameters", "minutes")
    yield from (head, ["---"] * len(head))
    for model in MODELS:
        for run in results.get(model, ()):
            yield (
                f"{TITLES[model]}, seed {run['seed']}",
                f"{run['valid_perplexity']:.1f}",
                f"**{run['test_perplexity']:.1f}**",
                f"{run['test_unigram_perplexity']:.1f}",
                f"{run['test_accuracy']:.1%}",
                f"{run['parameters']:,}",
                f"{run['seconds'] / 60:.0f}",
            )


def _image_rows(results, published):
    """Accuracies and losses with the paper's beside them."""
    head = ("model", "test accuracy", "paper", "test loss", "paper", "parameters", "epochs (best)")
    yield from (head, ["---"] * len(head))
    for model in MODELS:
        paper = published.get(model, {})
        for run in results.get(model, ()):
            yield (
                f"{TITLES[model]}, seed {run['seed']}",
                f"**{run['test_accuracy']:.2%}**",
                _number(paper.get("test_accuracy"), ".2%"),
                f"{run['test_loss']:.4f}",
                _number(paper.get("test_loss"), ".4f"),
                f"{run['parameters']:,}",
                f"{len(run['history']['loss'])} ({run['best_epoch']})",
            )


def fill(page, folder):
    """Write every table between its marks in `page`, a Markdown file:

        <!-- results:BENCHMARK:PROTOCOL --> ... <!-- /results:BENCHMARK:PROTOCOL -->
        <!-- claims:RUN --> ... <!-- /claims:RUN -->          of the traces of a stored run

    Returns the names of the tables.
    """
    page, names = Path(page), []

    def table(match):
        names.append(f"{match[1]}:{match[2]}")
        mark = f"results:{match[1]}:{match[2]}"
        return f"<!-- {mark} -->\n{results_table(folder, match[1], match[2])}\n<!-- /{mark} -->"

    text, found = claims.fill(page.read_text(encoding="utf-8"), folder)
    names += found
    pattern = r"<!-- results:(\w+):(\w+) -->.*?<!-- /results:\1:\2 -->"
    page.write_text(re.sub(pattern, table, text, flags=re.DOTALL), encoding="utf-8")
    return names


def figures(folder):
    """Draw what the README shows into `folder`/figures, from the stored runs alone. Returns the paths.

    Learning curves of every benchmark by the paper's protocol; of stored traces (the .npz beside an Engram result),
    retrieval weights, the trace over training, and what `claims` says of them.
    """
    folder, drawn, written = Path(folder), {}, []
    for benchmark in PAPER:
        results = load_results(folder, benchmark, "paper")
        histories = {TITLES[model]: [run["history"] for run in results[model]] for model in MODELS if model in results}
        if histories:
            drawn[f"{benchmark}-learning-curves.png"] = plots.learning_curves(histories)
    for path in sorted(folder.glob("*-engram-*.npz")):
        stored = read_arrays(path)
        traces, a, x = stored["traces"], stored["retrieval"][0], stored["probe"][0]
        x = x.reshape(len(x), -1, 3) if x.shape[-1] % 3 == 0 else x
        drawn[f"{path.stem}-retrieval.png"] = plots.retrieval_over_time(a, image=np.clip(x, 0, 1))
        drawn[f"{path.stem}-trace.png"] = plots.trace_evolution(traces, labels=range(len(traces)))
        written += claims.write(folder, path.stem)
    for name, figure in drawn.items():
        plots.save(figure, folder / "figures" / name)
    return [folder / "figures" / name for name in drawn] + written


def _row(cells):
    return f"| {' | '.join(cells)} |"


def _number(value, form):
    return "-" if value is None else format(value, form)


def _machine(machine):
    threads = machine["blas_threads"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, BLAS threads: {threads}, "
        f"NumPy {machine['numpy']}, Python {machine['python']}"
    )
