"""Charts as SVG, for report.html and for the figures of experiments/.

A chart is (height, parts, title): inline() puts one on a page, stacked() of figures.py a file.
All are WIDTH wide, so that they stand on a phone as they are. Colours are names of colours.py.
"""

import html
import math

from plumbing import colours

WIDTH, LEFT, RIGHT = 380, 58, 366           # LEFT to RIGHT: a plot's area
TALL = 150                                  # its height
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 3")
CODES = tuple(colours.CODES)
SHAPES = ("m-2-2h4v4h-4z", "m-4-3h8l-4 7z", "m-4 3h8l-4-7z", "m0-4l4 4l-4 4l-4-4z")   # by gap code


def words_wide(words, size=12):
    """About how many pixels a text takes; rather too many."""
    return 0.6 * size * len(words)


def plain(v):
    """A number as it stands at an axis: 0.25, −3, 1e−5, 1−2e−6."""
    if 0.9999 < v < 1:
        return f"1−{plain(float(f'{1 - v:.1g}'))}"
    return f"{v:.6g}".replace("e-0", "e-").replace("-", "−")


def dash(i):
    """Of the i-th curve of a chart: a second cue beside its colour."""
    return DASHES[i % len(DASHES)]


def text(x, y, words, anchor="start", size=12):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
            f'{html.escape(str(words))}</text>')


def mark(tag, colour, more, words=""):
    """A filled shape; words: what shows when the mouse rests on it."""
    title = f"<title>{html.escape(words)}</title>" if words else ""
    return f'<{tag} class="{colour}" fill="currentColor" {more}>{title}</{tag}>'


def line(x1, y1, x2, y2, colour="grid", width=1.0, dash="none"):
    return (f'<line class="{colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="currentColor" stroke-width="{width}" stroke-dasharray="{dash or "none"}"/>')


def box(x, y, width, height, colour, more="", words=""):
    return mark("rect", colour, f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" {more}', words)


def circle(x, y, colour, full, words=""):
    return mark("circle", colour, f'cx="{x:.1f}" cy="{y:.1f}" r="3.5" stroke="currentColor" '
                f'stroke-width="1.5" fill-opacity="{int(full)}"', words)


def shape(code, places, more=""):
    """The mark of a gap code at these (x, y)."""
    where = "".join(f"M{x:.1f} {y:.1f}{SHAPES[code]}" for x, y in places)
    return mark("path", CODES[code], f'd="{where}" {more}')


def ticks(low, high, log=False, n=5):
    """Round numbers from low to high, about n.

    >>> ticks(-3.2, 1.4)
    [-3.0, -2.0, -1.0, 0.0, 1.0]
    >>> ticks(0.2, 4000, log=True)
    [1.0, 10.0, 100.0, 1000.0]
    """
    if log:
        steps = (1, 2, 5) if high / low < 20 else (1, 3) if high / low < 1000 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0 ** e for e in powers for m in steps]
        return [v for v in found if 0.999 * low <= v <= 1.001 * high]
    raw = max(high - low, 1e-9) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scale(low, high, start, end, log=False):
    """A function that maps low..high to start..end."""
    f = math.log if log else float
    factor = (end - start) / max(1e-9, f(high) - f(low))

    def place(v):
        return start + (f(v) - f(low)) * factor

    return place


def legend(entries, top):
    """Entries {words: a mark, drawn around (12, 0)}, in columns from `top` -> (bottom, parts)."""
    columns = max(1, min(3, int((WIDTH - 14) / (36 + max(map(words_wide, entries))))))
    parts = []
    for i, (words, sign) in enumerate(entries.items()):
        x = 14 + (WIDTH - 14) / columns * (i % columns)
        y = top + 10 + 19 * (i // columns)
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">{sign}</g>')
        parts.append(text(x + 30, y + 4, words))
    return top + 5 + 19 * math.ceil(len(entries) / columns), parts


def frame(low, high, x, marks, name, log=False, tall=TALL):
    """A plot's grid and the words below, at marks (value, words) -> (parts, y)."""
    y, parts = scale(low, high, 30 + tall, 30, log), []
    for v in ticks(low, high, log):
        parts += [line(LEFT, y(v), RIGHT, y(v), "grid" if v else "ink"),
                  text(LEFT - 6, y(v) + 4, plain(v), "end")]
    for v, words in marks:
        furthest = WIDTH - 2 - words_wide(words) / 2
        parts.append(text(min(x(v), furthest), tall + 46, words, "middle"))
    parts.append(text(WIDTH / 2, tall + 63, name, "middle"))
    return parts, y


def curves(title, drawn, marks, name, low, high, log=False, x_log=False):
    """drawn: {words: (colour, dash, [(x, y), ...])}; marks: [(x, words), ...] below.

    What falls below `low` leaves the plot.
    """
    xs = [x for _, _, points in drawn.values() for x, _ in points] + [v for v, _ in marks]
    x = scale(min(xs), max(xs), LEFT, RIGHT, x_log)
    parts, y = frame(low, high, x, marks, name, log)
    parts.append(f'<svg class="clip" x="{LEFT}" y="28" width="{RIGHT - LEFT}" height="{TALL + 4}" '
                 f'viewBox="{LEFT} 28 {RIGHT - LEFT} {TALL + 4}">')
    entries = {}
    for words, (colour, dash, points) in drawn.items():
        where = " ".join(f"{x(a):.1f},{y(max(b, low) if log else b):.1f}" for a, b in points)
        more = f'stroke="currentColor" stroke-width="2" stroke-dasharray="{dash or "none"}"'
        if len(points) == 1:
            parts.append(circle(x(points[0][0]), y(points[0][1]), colour, True, words))
        parts.append(mark("polyline", colour, f'points="{where}" fill-opacity="0" {more}', words))
        entries[words] = line(0, 0, 25, 0, colour, 2.5, dash)
    height, signs = legend(entries, TALL + 72)
    return height, [*parts, "</svg>", *signs], title


def areas(title, layers, xs, marks, name):
    """layers: {name of a colour: values at xs}, one upon the other, the first at the bottom."""
    x = scale(min(xs), max(xs), LEFT, RIGHT)
    highest = 1.05 * max(0.1, *map(sum, zip(*layers.values(), strict=True)))
    parts, y = frame(0, highest, x, marks, name)
    floor = [0.0] * len(xs)
    for colour, values in layers.items():
        roof = [a + b for a, b in zip(floor, values, strict=True)]
        edge = [*zip(xs, roof, strict=True), *zip(xs[::-1], floor[::-1], strict=True)]
        where = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
        parts.append(mark("polygon", colour, f'points="{where}"', colour))
        floor = roof
    height, signs = legend({colour: box(2, -5, 22, 10, colour) for colour in layers}, TALL + 72)
    return height, parts + signs, title


def histogram(title, counts, reach, name, colour):
    """Counts of equal bins from -reach to reach, logarithmic heights; colour(from, to) of a bin."""
    x = scale(-reach, reach, LEFT, RIGHT)
    marks = [(v, plain(float(f"{v:.2g}"))) for v in (-reach, -reach / 2, 0, reach / 2, reach)]
    parts, y = frame(0.5, 1.5 * max(2, *counts), x, marks, name, True)
    width = 2 * reach / len(counts)
    for i, count in enumerate(counts):
        start = -reach + i * width
        if count:
            parts.append(box(x(start), y(count), x(width) - x(0) - 0.5, 30 + TALL - y(count),
                             colour(start, start + width)))
    return TALL + 72, parts, title


def scatter(title, clouds, low, high, name):
    """clouds[gap code]: [(x, y), ...], both axes logarithmic; the lowest lie on the edge."""
    tall = RIGHT - LEFT
    x = scale(low, high, LEFT, RIGHT, True)
    marks = [(v, plain(v)) for v in ticks(low, high, True)]
    parts, y = frame(low, high, x, marks, name, True, tall)
    parts.append(line(LEFT, 30 + tall, RIGHT, 30, "soft", 1, "4 3"))
    for code in (0, 3, 2, 1):
        places = [(x(max(a, low)), y(max(b, low))) for a, b in clouds[code]]
        parts.append(shape(code, places, 'fill-opacity=".6"'))
    signs = {name: shape(code, [(15, 0)]) for code, name in enumerate(CODES)}
    height, signs = legend(signs, tall + 72)
    return height, parts + signs, title


def rows_frame(labels, low, high, top):
    """Labels of rows at the left, numbers below -> (parts, x, left, y of the rows, bottom)."""
    left = 14 + max(map(words_wide, labels))
    x, parts = scale(low, high, left, RIGHT - 8), []
    bottom = top + 8 + 22 * len(labels)
    for v in ticks(low, high, n=max(4, (RIGHT - left) // 40)):
        parts += [line(x(v), top, x(v), bottom, "grid" if v else "ink"),
                  text(x(v), bottom + 15, plain(v), "middle")]
    ys = [top + 15 + 22 * i for i in range(len(labels))]
    parts += [text(left - 6, y + 4, label, "end") for y, label in zip(ys, labels, strict=True)]
    return parts, x, left, ys, bottom


def bars(title, rows, high):
    """rows: (label, colour, value, (low, high) of its interval or None, reference or None)."""
    parts, x, left, ys, bottom = rows_frame([row[0] for row in rows], 0, 1.12 * high, 28)
    for y, (label, colour, value, ends, reference) in zip(ys, rows, strict=True):
        words = f"{label}: {value:.1f}" + (" [{:.1f}, {:.1f}]".format(*ends) if ends else "")
        parts.append(box(left, y - 7, x(value) - left, 14, colour,
                         'fill-opacity=".3" stroke="currentColor"', words))
        if ends:
            parts.append(line(x(ends[0]), y, x(ends[1]), y, "ink", 1.5))
        if reference is not None:
            parts.append(line(x(reference), y - 9, x(reference), y + 9, "ink", 2))
        end = max(value, *(ends or ()), reference or 0)
        parts.append(text(x(end) + 5, y + 4, plain(round(value, 1))))
    return bottom + 22, parts, title


def forest(title, groups, references, claims=(), claim="the paper's claim"):
    """Differences with their intervals: marks filled for the first reference, hollow for the next
    (one that is called "" has no legend).

    groups: {name: [(label, colour, {reference: (mean, half the interval)}), ...]}; claims: {name
    of a group: a value marked there by an upright line}.
    """
    signs = {f"less {reference}": circle(15, 0, "ink", k == 0)
             for k, reference in enumerate(references) if reference}
    if claims:
        signs[claim] = line(15, -7, 15, 7, "link", 2)
    top, parts = legend(signs, 22) if signs else (22, [])
    for name, rows in groups.items():
        if not rows:
            continue
        ends = [m + side * min(h, 100) for *_, marks in rows for m, h in marks.values()
                for side in (-1, 1)]
        ends += [claims[name] + 0.3] if name in claims else []
        if name:
            parts.append(text(14, top + 14, name, size=13))
            top += 22
        own, x, _, ys, bottom = rows_frame([row[0] for row in rows], min(-0.5, *ends),
                                           max(0.5, *ends), top)
        parts += own
        if name in claims:
            parts.append(line(x(claims[name]), top, x(claims[name]), bottom, "link", 2))
        for y, (label, colour, marks) in zip(ys, rows, strict=True):
            for reference, (mean, half) in marks.items():
                k = references.index(reference)
                at = y + 8 * (k - (len(references) - 1) / 2)
                low, high = mean - min(half, 100), mean + min(half, 100)
                words = f"{label} {reference} {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                parts += [line(x(low), at, x(high), at, colour, 1.5),
                          circle(x(mean), at, colour, k == 0, words)]
        top = bottom + 26
    return top, parts, title


def whole(height, parts, title, more=""):
    return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
            f'aria-label="{html.escape(title)}"{more}>{"".join(parts)}</svg>')


def inline(chart):
    """The chart as an element of a page that has the classes of colours.css()."""
    height, parts, title = chart
    return whole(height, [text(WIDTH / 2, 18, title, "middle", 13), *parts], title)
