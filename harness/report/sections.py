"""The page's sections, each from what it tells of; a section without data says so in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.draw.chart import Line, Mark
from harness.draw.markup import Markup, join, tag
from harness.report.charts import Bar, bars, legend, lines, losses

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Sequence

    from harness.draw.markup import Child
    from harness.report.contract import Contract
    from harness.report.model import Machine, Report
    from harness.report.series import Point, Series
    from harness.report.sidecars import Decode, Kernel, Origin, Parity, Peer, Rejection

_FLOOR = 0.99  # of a layer's cosine: the contract's
_SHORT = 8
_MOST_REASONS = 20
_OURS = "decode.Qwen3MoeDecode"  # what the peers decode, too
_PEERS = "peers."
_DRAWN = (
    ("ms_per_token", "ms/token", True),
    ("ms_per_step", "ms/step", True),
    ("tokens_per_second", "tok/s", False),
)  # watched?
_STATES = {"met": "good", "failed": "bad", "open": "open"}


def summary(report: Report) -> str:
    """What there is, in a line."""
    figures = sum(
        len(each)
        for machine in report.machines
        for each in (machine.decodes, machine.batches, machine.parities, machine.kernels)
    )
    newest = f", the newest measured {_day(report.newest)}" if report.newest else ""
    return (
        f"{_count(figures, 'accepted figure')} of {_count(len(report.machines), 'machine')}"
        f"{newest}; {len(report.rejections)} rejected."
    )


def unreadable(report: Report) -> Markup | None:
    """Files that are missing from everything below; None where there are none."""
    if not report.unreadable:
        return None
    rows = [
        tag("tr", tag("th", tag("code", each.path), scope="row"), tag("td", each.why, class_="why"))
        for each in report.unreadable
    ]
    caption = f"{_count(len(rows), 'file')} of results/ could not be read and is left out"
    return _table(caption, ("file", "found"), rows)


def figures(report: Report) -> Markup:
    """A card for each machine, then every decode in a table, then batches."""
    if not any(machine.decodes or machine.batches for machine in report.machines):
        return _nothing("No accepted decode in results/ yet: asv run writes them.")
    cards = (
        _card(machine, max(machine.decodes, key=_headline))
        for machine in report.machines
        if machine.decodes
    )
    tables = (_decodes(machine) for machine in report.machines if machine.decodes)
    batches = (_batches(machine) for machine in report.machines if machine.batches)
    return join(tag("div", *cards, class_="cards"), *tables, *batches)


def _headline(decode: Decode) -> tuple[bool, int]:
    return decode.origin.benchmark.startswith(_OURS), -decode.depth


def _card(machine: Machine, decode: Decode) -> Markup:
    facts: list[tuple[str, Child]] = [
        ("time", f"{decode.ms_median:.4g} ms/token, p99 {decode.ms_p99:.4g}"),
        ("model", f"{decode.model}, depth {decode.depth}"),
        ("bandwidth", _percent(decode.roofline_fraction, "of the measured read bandwidth")),
        ("memory", f"{decode.peak_bytes / 1e9:.2f} GB at its peak"),
        ("ran", f"{decode.origin.device}, {decode.numerics}"),
        ("commit", _commit(decode.origin)),
    ]
    return tag(
        "article",
        tag("h3", machine.title),
        tag("p", machine.detail, class_="note"),
        tag(
            "p",
            f"{decode.tokens_per_second:.4g} ",
            tag("small", "tok/s "),
            tag("span", "accepted", class_="badge good"),
            class_="big",
        ),
        tag("dl", *(join(tag("dt", name), tag("dd", fact)) for name, fact in facts)),
        class_="card",
    )


def _decodes(machine: Machine) -> Markup:
    rows = [
        tag(
            "tr",
            tag(
                "th",
                tag("code", decode.origin.benchmark),
                _overtaken(machine, decode.origin),
                scope="row",
            ),
            _number(f"{decode.ms_median:.4g}"),
            _number(f"{decode.ms_p99:.4g}"),
            _number(f"{decode.tokens_per_second:.4g}"),
            _number(_percent(decode.roofline_fraction)),
            _number(f"{decode.peak_bytes / 1e9:.3g}"),
            _number("–" if decode.joules_per_token is None else f"{decode.joules_per_token:.3g}"),
            _number(_worst(decode.parity)),
            tag("td", decode.numerics),
            tag("td", _commit(decode.origin)),
        )
        for decode in machine.decodes
    ]
    heads = (
        *("decode", "#ms/token", "#p99", "#tok/s", "#bandwidth", "#peak GB", "#J/token"),
        *("#worst cosine", "numerics", "commit"),
    )
    return _table(machine.title, heads, rows)


def _batches(machine: Machine) -> Markup:
    rows = [
        tag(
            "tr",
            tag(
                "th",
                tag("code", batch.origin.benchmark),
                _overtaken(machine, batch.origin),
                scope="row",
            ),
            _number(f"{batch.size}"),
            _number(f"{batch.ms_median:.4g}"),
            _number(f"{batch.ms_p99:.4g}"),
            _number(f"{batch.tokens_per_second:.4g}"),
            _number(f"{batch.distinct_experts:.1f}"),
            _number(_percent(batch.roofline_fraction)),
            _number(f"{batch.peak_bytes / 1e9:.3g}"),
            _number("–" if batch.joules_per_token is None else f"{batch.joules_per_token:.3g}"),
            tag("td", batch.numerics),
            tag("td", _commit(batch.origin)),
        )
        for batch in machine.batches
    ]
    heads = (
        *("several at once", "#sequences", "#ms/step", "#p99", "#tok/s", "#experts of a layer"),
        *("#bandwidth", "#peak GB", "#J/token", "numerics", "commit"),
    )
    return _table(f"{machine.title}: sequences at once", heads, rows)


def over_commits(report: Report) -> Markup:
    """ms/token and tok/s of every decode that asv has, beside one another."""

    def charts(machine: Machine) -> Iterable[Markup]:
        for benchmark in dict.fromkeys(each.benchmark for each in machine.series):
            for metric, unit, watched in _DRAWN:
                if group := _group(machine, benchmark, metric):
                    yield _over_commits(benchmark, unit, group, watched=watched)

    return _charts(
        report,
        charts,
        "Oldest commit left. asv calls a lasting rise of a watched metric a regression; it takes "
        "lower for better, so tok/s is drawn and not watched. A cross: failed there.",
        "No decode over commits in results/ yet: asv run HEAD~3..HEAD makes some.",
    )


def _group(machine: Machine, benchmark: str, metric: str) -> list[Series]:
    return [
        each for each in machine.series if each.benchmark == benchmark and each.metric == metric
    ]


def _over_commits(benchmark: str, unit: str, group: Sequence[Series], *, watched: bool) -> Markup:
    """``watched`` is what asv.conf.json says of the metric; a peer's is not ours to watch."""
    commits: dict[str, dt.datetime] = {}
    for each in group:
        commits |= {point.commit: point.when for point in each.points}
    order = sorted(commits, key=lambda commit: (commits[commit], commit))
    drawn = [
        Line(
            each.parameters or benchmark,
            tuple(_mark(order, each, point, unit) for point in each.points),
        )
        for each in group
    ]
    return _figure(
        benchmark,
        f"{unit}, {'watched' if watched and not benchmark.startswith(_PEERS) else 'not watched'}",
        lines(benchmark, unit, drawn, [commit[:_SHORT] for commit in order]),
        [line.name for line in drawn],
    )


def _mark(order: Sequence[str], series: Series, point: Point, unit: str) -> Mark:
    value = "failed" if point.value is None else f"{point.value:.5g} {unit}"
    told = f"{point.commit[:_SHORT]}, {_day(point.when)}, {series.parameters}: {value}"
    return Mark(order.index(point.commit), point.value, told, point.low, point.high)


def layer_cosines(report: Report) -> Markup:
    """How far every layer of the newest evidence is from the oracle."""

    def charts(machine: Machine) -> Iterable[Markup]:
        for parity in (*(decode.parity for decode in machine.decodes), *machine.parities):
            if parity.layers:
                yield _layers(parity)

    return _charts(
        report,
        charts,
        "1 − cosine of moe_ffn_out against the reference, at the worst position of each layer, on "
        "a logarithmic scale: lower is nearer. Free-running is what a user gets; teacher-forced "
        "feeds every layer the reference's input.",
        "No evidence of layers in results/ yet.",
    )


def _layers(parity: Parity) -> Markup:
    both = (
        ("free-running", {layer.layer: layer.free for layer in parity.layers}),
        ("teacher-forced", {layer.layer: layer.forced for layer in parity.layers}),
    )
    drawn = [
        Line(
            name,
            tuple(
                Mark(layer, 1 - cosine, f"layer {layer}, {name}: 1 − {1 - cosine:.3g}")
                for layer, cosine in cosines.items()
                if cosine is not None
            ),
        )
        for name, cosines in both
    ]
    rows = [
        tag(
            "tr",
            tag("th", f"{layer.layer}", scope="row"),
            _number(_cosine(layer.free)),
            _number(_cosine(layer.forced)),
        )
        for layer in parity.layers
    ]
    judged = " and ".join(parity.judged).replace("free", "free-running")
    judged = judged.replace("forced", "teacher-forced")
    said = f"{parity.numerics} against {parity.reference}; judged {judged}; commit "
    return _figure(
        parity.origin.benchmark,
        said + parity.origin.commit[:_SHORT],
        losses(parity.origin.benchmark, drawn, _FLOOR),
        [line.name for line in drawn],
        tag(
            "details",
            tag("summary", "as a table"),
            _table("", ("layer", "#free-running", "#teacher-forced"), rows),
        ),
    )


def roofline(report: Report) -> Markup:
    """Each kernel's share of the machine's measured read bandwidth."""

    def charts(machine: Machine) -> Iterable[Markup]:
        for family, kernels in _families(machine.kernels).items():
            drawn = bars(f"{family}: share of read bandwidth", list(map(_bar, kernels)), "100 %")
            said = f"share of the read bandwidth measured beside each, {_range(kernels)}"
            yield _figure(family, said, drawn, ())

    return _charts(
        report,
        charts,
        "These kernels read far more than they compute: memory is their roof. Cold launches; the "
        "bytes are those that a launch must read.",
        "No kernel by itself in results/ yet.",
    )


def _families(kernels: Iterable[Kernel]) -> dict[str, list[Kernel]]:
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        family = kernel.origin.benchmark.partition(" ")[0]
        found.setdefault(f"{family} {kernel.numerics}".strip(), []).append(kernel)
    return found


def _range(kernels: Sequence[Kernel]) -> str:
    low, high = (f"{pick(kernel.bandwidth for kernel in kernels) / 1e9:.3g}" for pick in (min, max))
    return f"{low} GB/s" if low == high else f"{low} to {high} GB/s"


def _bar(kernel: Kernel) -> Bar:
    speed = kernel.bytes / kernel.us_median / 1e3
    said = f"{_percent(kernel.roofline_fraction)} · {speed:.3g} GB/s · {kernel.us_median:.4g} µs"
    return Bar(kernel.name, kernel.roofline_fraction, said)


def peers(report: Report) -> Markup:
    """Other engines' own figures, beside ours on the same file, machine and depth."""
    tables = [_peers(machine) for machine in report.machines if machine.peers]
    if not tables:
        return _nothing(
            "No peer measured in results/ yet: point MOE_HARNESS_LLAMA_BENCH to a llama-bench."
        )
    note = "A peer's figure is its own: no guard has seen what it computed."
    return join(tag("p", note, class_="note"), *tables)


def _peers(machine: Machine) -> Markup:
    rows = []
    for peer in machine.peers:
        ours = next((each for each in machine.decodes if _same_work(each, peer)), None)
        rows.append(
            tag(
                "tr",
                tag("th", peer.peer, scope="row"),
                _number(f"{peer.depth}"),
                _number(f"{peer.tokens_per_second:.4g} ± {peer.deviation:.2g}"),
                _number("–" if ours is None else f"{ours.tokens_per_second:.4g}"),
                _number(
                    "–"
                    if ours is None
                    else f"{ours.tokens_per_second / peer.tokens_per_second:.2f} ×"
                ),
                tag("td", tag("code", peer.build)),
                tag("td", "–" if ours is None else _commit(ours.origin)),
            )
        )
    heads = ("peer", "#depth", "#its tok/s", "#our tok/s", "#ours / its", "build", "our commit")
    return _table(machine.title, heads, rows)


def _same_work(decode: Decode, peer: Peer) -> bool:
    return (
        decode.origin.benchmark.startswith(_OURS)
        and decode.depth == peer.depth
        and decode.fingerprint == peer.fingerprint
    )


def rejected(report: Report) -> Markup:
    """Every run without a figure, and why."""
    if not (report.rejections or report.holes):
        return _nothing("Nothing in results/ was rejected.")
    rows = [*map(_rejection, report.rejections)]
    rows += [
        tag(
            "tr",
            tag("th", tag("code", f"{hole.benchmark} {hole.parameters}".strip()), scope="row"),
            tag("td", hole.machine),
            tag("td", tag("code", hole.commit)),
            tag("td", "failed in asv, and no evidence says why", class_="why"),
        )
        for hole in report.holes
    ]
    return _table("", ("benchmark", "machine", "commit", "why"), rows)


def _rejection(rejection: Rejection) -> Markup:
    origin, reasons = rejection.origin, rejection.reasons[:_MOST_REASONS]
    more = len(rejection.reasons) - len(reasons)
    planted = (
        tag("p", f"planted to be rejected: {rejection.planted}", class_="note")
        if rejection.planted
        else None
    )
    return tag(
        "tr",
        tag("th", tag("code", origin.benchmark), scope="row"),
        tag("td", origin.machine or origin.device),
        tag("td", _commit(origin)),
        tag(
            "td",
            tag("ul", *(tag("li", reason) for reason in reasons)),
            tag("p", f"and {more} more", class_="note") if more else None,
            planted,
            class_="why",
        ),
    )


def contracts(report: Report) -> Markup:
    """Each contract's state by its criteria."""
    if not report.contracts:
        return _nothing("No contract file is there.")
    return join(*map(_contract, report.contracts))


def _contract(contract: Contract) -> Markup:
    rows = [
        tag(
            "tr",
            tag("th", criterion.name, scope="row"),
            tag("td", criterion.demand),
            tag("td", tag("span", criterion.state, class_=f"badge {_STATES[criterion.state]}")),
            tag("td", criterion.found, class_="why"),
        )
        for criterion in contract.criteria
    ]
    return _table(
        f"{contract.name}: {contract.state}", ("criterion", "demand", "state", "found"), rows
    )


# -- what they share ---------------------------------------------------------------------------


def _charts(
    report: Report, charts_of: Callable[[Machine], Iterable[Markup]], note: str, nothing: str
) -> Markup:
    """Charts by machine, below a note; ``nothing`` in their place where no machine has any."""
    shown = [
        join(_machine_title(machine), tag("div", *charts, class_="charts"))
        for machine in report.machines
        if (charts := list(charts_of(machine)))
    ]
    return join(tag("p", note, class_="note"), *shown) if shown else _nothing(nothing)


def _figure(
    name: str, said: str, chart: Markup, names: Sequence[str], more: Markup | None = None
) -> Markup:
    return tag(
        "figure",
        tag("figcaption", name, tag("small", said)),
        legend(names) if names else None,
        chart,
        more,
    )


def _table(caption: str, heads: Sequence[str], rows: Sequence[Markup]) -> Markup:
    """A table that scrolls by itself; a head that begins with # stands over numbers."""
    cells = (
        tag("th", head.removeprefix("#"), scope="col", class_="n" if head[:1] == "#" else None)
        for head in heads
    )
    table = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", *cells)),
        tag("tbody", *rows),
    )
    # Focusable: whoever has no pointer must be able to scroll it.
    return tag(
        "div", table, class_="table", tabindex="0", role="group", aria_label=caption or "table"
    )


def _machine_title(machine: Machine) -> Markup:
    return tag("h3", machine.title, " ", tag("small", machine.detail))


def _overtaken(machine: Machine, origin: Origin) -> Markup | None:
    if origin.benchmark not in machine.overtaken:
        return None
    return join(" ", tag("span", "a newer run was rejected", class_="badge bad"))


def _commit(origin: Origin) -> Markup:
    day = f", {_day(origin.measured)}" if origin.measured else ""
    dirty = tag("span", "dirty tree", class_="badge open") if origin.dirty else None
    return join(tag("code", origin.commit[:_SHORT]), day, " " if dirty else None, dirty)


def _number(said: str) -> Markup:
    return tag("td", said, class_="n")


def _nothing(said: str) -> Markup:
    return tag("p", said, class_="note")


def _percent(share: float | None, of: str = "") -> str:
    return "–" if share is None else f"{100 * share:.1f} % {of}".strip()


def _worst(parity: Parity) -> str:
    pick: dict[str, Callable[..., float | None]] = {
        "free": lambda layer: layer.free,
        "forced": lambda layer: layer.forced,
    }
    found = [
        value
        for mode in parity.judged
        if mode in pick
        for layer in parity.layers
        if (value := pick[mode](layer)) is not None
    ]
    return _cosine(min(found, default=None))


def _cosine(value: float | None) -> str:
    if value is None:
        return "–"
    loss = 1 - value
    return f"1 − {loss:.1e}" if 0 < loss < 1e-5 else f"{value:.6f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _day(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d}"
