"""Line plots as small SVG files, without a library."""

from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 240, 56, 44, 30, 14
COLOURS = ["#0b6e99", "#c8553d", "#588157", "#6d597a"]


def ticks(most):
    """Round numbers from 0 to `most`, four to six of them."""
    step = 10 ** len(str(int(most))) / 10 if most >= 1 else 0.1
    while most / step > 6:
        step *= 2
    while most / step < 3:
        step /= 2
    return [i * step for i in range(int(most / step) + 1)]


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def lines(title, x_name, y_name, series):
    """An SVG of `series`: name → points (x, y), both axes from 0."""
    xs, ys = zip(*(point for points in series.values() for point in points))
    x_most, y_most = max(xs) * 1.05, max(ys) * 1.1
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP

    def at(x, y):
        return LEFT + x / x_most * across, HEIGHT - BOTTOM - y / y_most * up

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for value in ticks(x_most):
        x, y = at(value, 0)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{TOP}" stroke="#eee"/>')
        out.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{number(value)}</text>')
    for value in ticks(y_most):
        x, y = at(0, value)
        out.append(f'<line x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        out.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for (name, points), colour in zip(series.items(), COLOURS):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in sorted(points)))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in (at(*point) for point in points):
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    if len(series) > 1:
        for index, (name, colour) in enumerate(zip(series, COLOURS)):
            y = TOP + 14 + 15 * index
            out.append(f'<line x1="{LEFT + 8}" x2="{LEFT + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
            out.append(f'<text x="{LEFT + 30}" y="{y}">{escape(name)}</text>')
    out.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>')
    middle = TOP + up / 2
    out.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
