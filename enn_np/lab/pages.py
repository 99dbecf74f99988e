"""Tables, figures and sentences from stored results: what the pages show is what a command wrote under data/results/.

A page names its tables by marks, <!-- KIND:A:B --> ... <!-- /KIND:A:B -->, which `python -m enn_np tables` fills. Of a
page with a PAGE.jinja beside it all is made of that, whose sentences compute their figures, see `_rendered`.

    results:mnist:paper    a benchmark's models by a protocol, means over seeds beside the paper's numbers
    tests:mnist:paper      those models in pairs: differences, tests, effect sizes
    ablation:mnist:recall  the settings of `table.ABLATIONS` on two benchmarks
    bench:cpu:2            times against other frameworks, of bench/cpu.json, on two threads
    claims:RUN             what the traces of a stored run say of the paper's claims
    verdicts               the rows of `verdicts.ROWS`
    files                  what is stored, of which revisions, and its checksums

`python -m enn_np verify` says where a page and the files differ, and who misquotes the figures "Quoted elsewhere".
"""

import json
import re
from collections import Counter
from functools import partial
from hashlib import sha256
from itertools import combinations, zip_longest
from pathlib import Path

import numpy as np

from ..checkpoint import read_arrays, write_text
from ..checks import choice
from ..look import attribution, claims, plots
from . import verdicts
from .results import files, lacks, load_results, read_json, read_result
from .table import ABLATIONS, CONTROLS, FIXED, MATCHED, MODELS, PAPER, TASKS, TITLES, TURNED, WITHOUT, find, task

DASH = "-"


def table(kind, *what):
    """The table of a mark KIND:A:B in Markdown: table("results", "mnist", "paper", folder)."""
    try:
        return KINDS[choice("mark", kind, tuple(KINDS))](what[-1], *what[:-1])
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"mark: {':'.join((kind, *what[:-1]))}: no table of it in {what[-1]}: {error!r}") from error


def results_table(folder, benchmark, protocol):
    """A row per model: means over seeds with their intervals, beside the paper's numbers, and what they ran on."""
    results, experiment = load_results(folder, benchmark, protocol), find(f"{benchmark}/{protocol}")
    lost = load_results(folder, benchmark, protocol, diverged=True)
    if not results and not lost:
        return "No stored results yet."
    rows = [_row(experiment, model, results.get(model, []), lost.get(model)) for model in {**results, **lost}]
    several = experiment.source != "fresh" and any(len(runs) > 1 for runs in results.values())
    return f"{_records(rows)}\n\n{_origin(results or lost)}" + " Intervals: Student's t." * several


def _row(experiment, model, runs, lost):
    """{title: cell} of a model's runs, and which of them are `lost`: a mean over those that are left looks better."""
    from .stats import interval

    fresh, paper = experiment.source == "fresh", PAPER.get(experiment.name, {})
    told = [_seeds(runs)] if runs else []
    row = {"model": _title(model), "seeds": "; ".join(told + ([f"{_seeds(lost)} diverged"] if lost else []))}
    if not runs:
        return row
    for title, key, form in experiment.columns:
        judged = key == experiment.score
        row[title] = f"**{_spread(runs, key, form)}**" if judged or fresh else _spread(runs, key, form)
        if judged and not fresh:
            row["95% interval"] = _ends(interval(_values(runs, key)), form)
        if experiment.source != "stream" and any(key in published for published in paper.values()):
            what = "paper" if judged else f"paper: {title.removeprefix('test ')}"
            row[what] = _number(paper.get(model, {}).get(key), form)
    history, size = runs[0]["history"], {"parameters": f"{runs[0]['parameters']:,}"}
    rates = history.get("learning_rate") or [runs[0]["training"]["learning_rate"]]
    rate = {"learning rate": f"{rates[0]:g}"} if experiment.protocol == "sound" else {}
    if fresh:
        return {**row, "steps": f"{np.mean(_values(runs, 'steps')):,.0f}", **rate, **size}
    epochs = f"{np.mean([len(run['history']['loss']) for run in runs]):.3g}"
    return {**row, **size, **rate, "epochs": epochs, "minutes": f"{np.mean(_values(runs, 'seconds')) / 60:.3g}"}


def tests_table(folder, benchmark, protocol):
    """A row per pair that is asked about: what `stats.compare` finds; losses and perplexities turned around."""
    from .stats import compare

    results, score = load_results(folder, benchmark, protocol), find(f"{benchmark}/{protocol}").score
    sign, form = (1, "+.2%") if score == "test_accuracy" else (-1, "+.4g")
    scores = _scores(results, score, sign)
    pairs = _comparable(scores, [pair for pair in combinations(scores, 2) if _asked(*pair)])
    if not pairs:
        return "Not yet: it needs two seeds of two models."
    rows = [
        {
            "pair": f"{_title(each.a)} - {_title(each.b)}",
            "seeds": str(each.seeds),
            "difference": f"**{each.difference:{form}}**",
            "95% interval": _ends(each.interval, form),
            "Welch p": f"{each.welch:.2g}",
            "permutation p": _number(each.permutation, ".2g"),
            "Hedges' g": f"{each.hedges_g:+.1f}",
            "P(first better)": f"{each.improvement:.0%}",
        }
        for each in compare(scores, pairs)
    ]
    notes = "Intervals: Student's t, paired by seed. p values are Holm-adjusted; -: no p below 0.05 with so few seeds."
    turned = f" Differences are of {score.replace('_', ' ')}, turned so that more is better." * (sign < 0)
    lost = load_results(folder, benchmark, protocol, diverged=True).items()
    gone = "".join(f" {_title(model)} {_seeds(runs)} diverged and is left out." for model, runs in lost)
    return f"{_records(rows)}\n\n{notes}{turned}{gone}"


def ablation_table(folder, *benchmarks):
    """A row per setting: accuracy, difference from "full" and slots that take part, on each benchmark with results."""
    from .stats import compare

    head, columns, origins = ["setting", "change"], [], []
    for benchmark in benchmarks:
        if results := load_results(folder, benchmark, "ablation"):
            scores = _scores(results, "test_accuracy")
            pairs = _comparable(scores, [(name, "full") for name in scores if name != "full" and "full" in scores])
            found = {each.a: each for each in compare(scores, pairs)}
            head += [f"{benchmark}: accuracy", "from full", "p", f"slots of {find(f'{benchmark}/ablation').sizes[1]}"]
            columns.append({name: _ablated(runs, found.get(name)) for name, runs in results.items()})
            seeds = ", ".join(sorted({_seeds(runs) for runs in results.values()}))
            origins.append(f"{benchmark}: {_origin(results)} Seeds: {seeds}.")
    rows = []
    for name, change in ABLATIONS.items():
        if any(name in column for column in columns):
            words = ", ".join(f"{key} = {value}" for key, value in change.items()) or DASH
            rows.append([name, words, *(cell for column in columns for cell in column.get(name, [DASH] * 4))])
    return "\n\n".join([claims.markdown(head, rows), "p: Welch's, Holm-adjusted for each task.", *origins])


def _ablated(runs, comparison):
    against = [DASH, DASH] if comparison is None else [f"{comparison.difference:+.2%}", f"{comparison.welch:.2g}"]
    slots = [run["trace"][-1]["effective_slots"] for run in runs if "trace" in run]
    return [_spread(runs, "test_accuracy", ".2%"), *against, f"{np.mean(slots):.1f}" if slots else DASH]


def _scores(results, key, sign=1):
    """{model: {seed: score}}."""
    return {model: {run["seed"]: sign * run[key] for run in runs} for model, runs in results.items()}


def _comparable(scores, pairs):
    """The pairs that have two seeds in common."""
    return [(a, b) for a, b in pairs if len(scores[a].keys() & scores[b].keys()) > 1]


def _asked(a, b):
    """Whether a pair is a question of this project: one has a memory, and the sizes are those of one comparison; or
    Binding and what controls for a part of it. Every pair more would raise the adjusted p values of all."""
    if {a, b} & {*WITHOUT}:
        return "engram" in (a, b)
    if controls := {a, b} & {*CONTROLS, *TURNED}:
        return {a, b} - controls <= {"binding", "binding-parameters"} and len(controls) == 1
    memories = "lstm-tied" not in (a, b) and {name.partition("-")[0] for name in (a, b)} & {"engram", "binding"}
    sizes = {name.partition("-")[2] if name in MATCHED else "" for name in (a, b)}
    return bool(memories) and (len(sizes) == 1 or "engram" in (a, b))  # what is matched is matched to engram


def bench_table(folder, name, threads):
    """A row per work and foreign peer of `folder`/bench/NAME.json, what `python -m tests.bench --json` wrote."""
    found = read_json(Path(folder) / "bench" / f"{name}.json")
    stored = [row for row in found["rows"] if row["threads"] == int(threads) and not row["peer"].startswith("enn_np")]
    rows = [
        {
            "work": row["work"],
            "against": row["peer"],
            "ours, ms": _number(row["ours_ms"], ",.0f" if (row["ours_ms"] or 0) >= 100 else ".3g"),
            "theirs, ms": _number(row["peer_ms"], ",.0f" if (row["peer_ms"] or 0) >= 100 else ".3g"),
            "theirs / ours": DASH if row["ratio"] is None else f"**{row['ratio']:.2f}**",
            "share of floor": _number(row["floor_share"], ".0%"),
            "per": row["unit"],
        }
        for row in stored
    ]
    speed = next((row["gemm_gflops"] for row in stored if row["gemm_gflops"]), None)
    header = found["header"]
    versions = ", ".join(f"{k} {v}" for each in header["versions"].values() for k, v in each.items() if k != "python")
    where = f"{header['cpu']}, {header['cpus']} CPUs, {threads} thread{'s' * (int(threads) > 1)}"
    product = f"a matrix product at {_number(speed, '.0f')} GFLOP/s"
    return f"{_records(rows)}\n\nMedians of {header['repeats']} rounds; {where}, {product}; {versions}."


def claims_table(folder, run):
    """What `claims` says of the traces of a stored run."""
    path = Path(folder) / run
    return claims.table(read_arrays(f"{path}.npz")["traces"], read_json(f"{path}.json")["trace"])


def files_table(folder):
    """A row per experiment: how many results, of which versions, what they do not say, and one checksum of all."""
    rows = []
    for name, paths in files(folder).items():
        stored = [read_json(path) for path in paths if path.suffix == ".json"]
        results = [each for each in stored if "stopped" in each]
        lacking = sorted(Counter(what for each in results for what in lacks(each)).items())
        versions = sorted({(each.get("machine") or {}).get("enn_np", "unknown") for each in results})
        content = b"".join(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n") for path in paths)
        row = {"stored": name, "files": str(len(paths)), "of version": ", ".join(versions) or DASH}
        row["results that lack"] = ", ".join(f"{what}: {many}" for what, many in lacking) or DASH
        rows.append(row | {"sha256, first 16 digits": f"`{sha256(content).hexdigest()[:16]}`"})
    return _records(rows) if rows else "No stored results yet."


TABLES = (results_table, tests_table, ablation_table, bench_table, claims_table, verdicts.verdicts_table, files_table)
KINDS = {each.__name__.removesuffix("_table"): each for each in TABLES}
NAME = r"(?:verdicts|files|\w+(?::[\w.-]+)+)"


def made(page, folder):
    """The text that a Markdown file should have: its template's, or its own, with figures and tables filled in."""
    template = Path(f"{page}.jinja")
    text = _rendered(template, Path(folder)) if template.exists() else _text(page)
    ends = re.findall(rf"<!-- (/?)({NAME}) -->", text)
    pairs = zip_longest(ends[::2], ends[1::2], fillvalue=("", ""))
    if lone := [name for (slash, name), after in pairs if slash or after != ("/", name)]:
        raise ValueError(f"page: {page}: <!-- {lone[0]} -->: expected <!-- /{lone[0]} --> after its table; write it")
    whole = re.compile(rf"(<!-- ({NAME}) -->).*?(<!-- /\2 -->)", re.DOTALL)
    return whole.sub(lambda found: "\n".join((found[1], table(*found[2].split(":"), folder), found[3])), text)


def _text(page):
    try:
        return Path(page).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"page: {page}: not readable as text ({error}); name a Markdown file") from None


def _rendered(template, folder):
    """The text of a template, whose words are those of `given` and `filters`."""
    from jinja2 import Environment, StrictUndefined, TemplateError
    from scipy import stats as scipy

    from .stats import false_alarms, interval, sample

    pages = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    given = {"of": partial(verdicts.numbers, folder), "file": lambda name: read_json(folder / name), "folder": folder}
    given |= {"paper": PAPER, "scipy": scipy, "false_alarms": false_alarms, "verdicts": verdicts}
    pages.filters |= {
        "f": lambda value, form=".1f": format(value, form),
        "mean": lambda values, form=".1f": format(sample("values", values, low=1).mean(), form),
        "ends": lambda values, form=".1f": _ends(interval(values), form),
        "next": lambda values, form: _ends(verdicts.one_more(np.mean(values), interval(values), len(values)), form),
        "apart": lambda values: "separable" if np.prod(interval(values)) > 0 else "not separable",
    }
    try:
        return pages.from_string(_text(template)).render(given)
    except TemplateError as error:
        raise ValueError(f"page: {template}: {error}") from None


def fill(page, folder):
    """Write a page, or the tables between its marks. Returns the names of the tables."""
    write_text(page, text := made(page, folder))
    return re.findall(rf"<!-- ({NAME}) -->", text)


def verify(pages, folder):
    """What is wrong, in words: pages that differ from the files, misquoted figures, results that lack their origin."""
    wrong, folder = [], Path(folder)
    if not files(folder):
        raise ValueError(f"results: expected a folder with stored results, found none in {folder}; name another")
    for page in pages:
        told = made(page, folder)
        lines = zip_longest(_text(page).splitlines(), told.splitlines(), fillvalue="(nothing)")
        for i, (stands, said) in [each for each in enumerate(lines, 1) if each[1][0] != each[1][1]][:1]:
            wrong.append(f"{page}, line {i} differs first; run `tables`\n  here:      {stands}\n  the files: {said}")
        wrong += misquoted(Path(page), told)
    for path in [path for paths in files(folder).values() for path in paths if path.suffix == ".json"]:
        result = read_json(path)
        if "stopped" in result and (result.get("machine") or {}).get("enn_np", "0.1.0") != "0.1.0":
            wrong += [f"{path}: lacks {what}; run it again" for what in lacks(result)]
    return wrong


def misquoted(page, text):
    """Rows | [name](path) | 1.2, 34% | under "Quoted elsewhere" of which no paragraph there has all, in this order."""
    wrong = []
    for path, figures in re.findall(r"^\| \[.*\]\((.*)\) \| (.*) \|$", text.partition("# Quoted elsewhere\n")[2], re.M):
        said = _text(where := page.parent / path)
        if path.endswith(".ipynb"):
            cells = [cell for cell in json.loads(said)["cells"] if cell["cell_type"] == "markdown"]
            said = "\n\n".join("".join(cell["source"]) for cell in cells)
        wanted = ".*?".join(rf"(?<![\d.,+−-]){re.escape(figure)}(?![.,]?\d)" for figure in figures.split(", "))
        if not any(re.search(wanted, " ".join(part.split())) for part in re.split(r"\n\s*\n", said)):
            wrong.append(f"{where}: no paragraph has {figures}; write these, or mend the list in {page}.jinja")
    return wrong


# ------------------------------------------------------------------------------------------------------------ figures


def curves(history):
    """Settings of `plots.learning_curves`: validation loss, its unit, and what the kind of task has beside it."""
    beside = next(name for name in ("perplexity", "accuracy", "mae") if name in history)
    return {"metrics": ("val_loss", f"val_{beside}"), "loss_unit": "squared error" if beside == "mae" else "nats"}


def trace_figures(traces, retrieval, x):
    """A trace on its way, and the retrieval weights of one image x (T, D), in colour where its rows can be."""
    image = np.clip(x.reshape(len(x), -1, 3) if x.shape[-1] % 3 == 0 else x, 0, 1)
    return {
        "retrieval": plots.retrieval_over_time(retrieval, image=image),
        "trace": plots.trace_evolution(traces, labels=range(len(traces))),
    }


def draw(out, results, monitor):
    """Learning curves of `results` (title -> numbers of a run) and, with a monitor, the trace after training, its way
    there, and one sequence's retrieval weights, as PNG files in `out`. Returns their paths."""
    histories = {title: numbers["history"] for title, numbers in results.items() if numbers["history"]}
    drawn = {}
    if histories:  # none after an early Ctrl-C
        drawn["learning_curves"] = plots.learning_curves(histories, **curves(next(iter(histories.values()))))
    if monitor:
        found = trace_figures(monitor.traces, monitor.retrieval[0], monitor.x[0])
        drawn["trace"] = plots.trace_heatmap(monitor.trace, "Hebbian trace after training")
        drawn |= {"trace_evolution": found["trace"], "retrieval": found["retrieval"]}
    return [plots.save(figure, out / f"{name}.png") for name, figure in drawn.items()]


def figures(folder):
    """Draw what the README shows into `folder`/figures, PNG and SVG, from the stored runs alone. Returns the paths.

    Learning curves, with bands from the lowest to the highest seed; of stored traces (the .npz beside an Engram result)
    retrieval weights, the trace over training, and what `claims` says of them; what a binding memory recalls, as arcs.
    """
    folder, drawn = Path(folder), {}
    for each in FIXED.values():
        results = load_results(folder, each.name, each.protocol) if each.protocol != "ablation" else {}
        few = [model for model in (*MODELS, "binding") if model in results]  # matched sizes: the table
        histories = {TITLES[model]: [run["history"] for run in results[model]] for model in few}
        if len(histories) > 1:  # of one network alone there is nothing to compare
            name = each.name if each.protocol == "paper" else f"{each.name}-{each.protocol}"
            drawn[f"{name}-learning-curves"] = plots.learning_curves(histories, **curves(histories[TITLES[few[0]]][0]))
    for path in sorted(folder.glob("*-engram-0.npz")):
        stored, statistics = read_arrays(path), read_json(path.with_suffix(".json"))["trace"]
        traces = stored["traces"]
        found = trace_figures(traces, stored["retrieval"][0], stored["probe"][0])
        found |= {"structured": claims.structure(traces), "stable": claims.stability(traces)}
        found["sparse"] = claims.sparsity(traces, statistics)
        drawn |= {f"{path.stem}-{what}": figure for what, figure in found.items()}
    for name, tasks in task_histories(folder).items():
        drawn[f"{name}-sound-learning-curves"] = plots.task_curves(tasks)
    path = folder / "recall8-sound-binding-0.json"
    if path.exists() and "recalled" in (found := read_result(path)):
        drawn[f"{path.stem}-arcs"] = plots.arcs(*attribution.told(found["recalled"]))
    paths = {folder / "figures" / f"{name}{end}": drawn[name] for name in drawn for end in (".png", ".svg")}
    return [plots.save(figure, path) for path, figure in paths.items()]


def task_histories(folder):
    """{family: {task: {network: histories}}} of an experiment's own networks with several seeds, if two have them."""
    found, names = {}, {read_result(path)["benchmark"] for path in Path(folder).glob("*-sound-*.json")}
    for each in sorted(filter(None, map(task, names)), key=lambda each: ([*TASKS].index(each.task), each.size)):
        own = {model: runs for model, runs in load_results(folder, each.name, "sound").items() if model in each.models}
        drawn = {_title(model): [run["history"] for run in runs] for model, runs in own.items() if len(runs) > 1}
        title = f"{each.size} pairs" if each.task == "recall" else each.name
        found.setdefault(each.family, {}).update({title: drawn} if len(drawn) > 1 else {})
    return {family: tasks for family, tasks in found.items() if tasks}


# ------------------------------------------------------------------------------------------------------------- cells


def _title(model):
    return TITLES.get(model, model)


def _values(runs, key):
    return [run[key] for run in runs]


def _number(value, form):
    return DASH if value is None else format(value, form)


def _spread(runs, key, form):
    """Mean, and the standard deviation where there is one; a number of bytes has none."""
    values = _values(runs, key)
    mean = format(np.mean(values), form)
    if len(values) < 2 or form.startswith(","):
        return mean
    return f"{mean.rstrip('%')} ± {format(np.std(values, ddof=1), form)}"


def _ends(interval, form):
    return DASH if interval is None else " to ".join(format(end, form) for end in interval)


def _seeds(runs):
    """The seeds of runs: "0", "0 to 4", or "0, 2, 3"."""
    seeds = _values(runs, "seed")
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) == seeds[-1] - seeds[0] + 1 > 1 else ", ".join(map(str, seeds))


def _origin(results):
    """Under what protocol, how much of the data, and on which machines."""
    runs = [run for each in results.values() for run in each]
    limits = {run.get("training", {}).get("limit") for run in runs} - {None}
    shorter = f" Trained on the first {', '.join(f'{limit:,}' for limit in sorted(limits))} only." if limits else ""
    form = "{processor}, {cores} cores, BLAS threads: {blas_threads}, NumPy {numpy}, Python {python}".format_map
    machines = sorted({form(run["machine"]) for run in runs})
    return f"Protocol: {runs[0]['protocol']}.{shorter} Measured on: {'; '.join(machines)}."


def _records(rows):
    """A table of rows {title: cell}."""
    return claims.markdown(head := max(rows, key=len), [[row.get(title, DASH) for title in head] for row in rows])
