//! Plots as SVG: lines over two axes, nothing else.
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Number of colours; then they come again.
pub const COLOURS: usize = 8;

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By their logarithm.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis<'a> {
    /// What stands beside it.
    pub title: &'a str,
    /// How values lie along it.
    pub scale: Scale,
    /// Positions of the marks with their labels; empty: they are found.
    pub marks: Vec<(f64, String)>,
    /// Text of a value.
    pub label: fn(f64) -> String,
}

/// A line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// What is shown where it is pointed at.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether the space below is filled.
    pub filled: bool,
    /// It has the colour of the line with this index and is broken, for what that line is compared with.
    pub beside: Option<usize>,
}

/// Maps values of an axis to the drawing.
struct Mapping {
    scale: Scale,
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Mapping {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (least, greatest) =
            values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = match scale {
            _ if least > greatest => (0.0, 1.0),
            Scale::Linear => (0.0, if greatest > 0.0 { greatest } else { 1.0 }),
            Scale::Log => {
                let (low, high) = (least.max(1e-9).log10(), greatest.max(1e-9).log10());
                if high - low < 0.3 { (low - 0.15, high + 0.15) } else { (low, high) }
            }
        };
        Mapping { scale, low, high, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.max(1e-9).log10() } else { value };
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// Positions for marks, on round numbers.
    fn marks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let rough = (self.high - self.low) / 5.0;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| *step >= rough);
                let step = step.unwrap_or(rough);
                (0..=(self.high / step) as u32).map(|index| f64::from(index) * step).collect()
            }
            Scale::Log => {
                let parts: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let powers = self.low.floor() as i32..=self.high.ceil() as i32;
                let values = powers.flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
                values.filter(|value| (self.low - 1e-9..=self.high + 1e-9).contains(&value.log10())).collect()
            }
        }
    }
}

/// The lines over the axes as an SVG element. Lines have the classes `c0` to `c7`.
pub fn plot(x: &Axis<'_>, y: &Axis<'_>, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let x_marks = x.marks.iter().map(|mark| mark.0);
    let across = Mapping::new(x.scale, points().map(|point| point.0).chain(x_marks), LEFT, WIDTH - RIGHT);
    // A little room above the highest value.
    let up = Mapping::new(y.scale, points().map(|point| point.1 * 1.05), HEIGHT - BOTTOM, TOP);
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">", y.title, x.title);
    for (value, label) in marks(x, &across) {
        let at = across.at(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            HEIGHT - BOTTOM + 16.0
        );
    }
    for (value, label) in marks(y, &up) {
        let at = up.at(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, at + 4.0);
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0);
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{middle:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{}</text>",
        x.title
    );
    let centre = (TOP + HEIGHT - BOTTOM) / 2.0;
    let _ = write!(
        svg,
        "<text class=\"axis\" transform=\"translate(14 {centre:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        y.title
    );
    for (index, line) in lines.iter().enumerate() {
        draw(&mut svg, line, index, &across, &up);
    }
    svg + "</svg>"
}

fn marks(axis: &Axis<'_>, mapping: &Mapping) -> Vec<(f64, String)> {
    if axis.marks.is_empty() {
        return mapping.marks().into_iter().map(|value| (value, (axis.label)(value))).collect();
    }
    axis.marks.clone()
}

fn draw(svg: &mut String, line: &Line, index: usize, across: &Mapping, up: &Mapping) {
    let (Some(first), Some(last)) = (line.points.first(), line.points.last()) else { return };
    let colour = line.beside.unwrap_or(index) % COLOURS;
    let broken = if line.beside.is_some() { " broken" } else { "" };
    let name = super::text::escape(&line.name);
    if let [(x, y)] = line.points[..] {
        // A line of one point would not be seen.
        let (x, y) = (across.at(x), up.at(y));
        let _ = write!(
            svg,
            "<circle class=\"line c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{name}</title></circle>"
        );
        return;
    }
    let mut path = String::new();
    for (number, &(x, y)) in line.points.iter().enumerate() {
        let letter = if number == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{letter}{:.1} {:.1}", across.at(x), up.at(y));
    }
    if line.filled {
        let (from, to, floor) = (across.at(first.0), across.at(last.0), up.start);
        let _ = write!(svg, "<path class=\"area c{colour}\" d=\"{path}L{to:.1} {floor:.1}L{from:.1} {floor:.1}Z\"/>");
    }
    let _ = write!(svg, "<path class=\"line c{colour}{broken}\" d=\"{path}\"><title>{name}</title></path>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis<'static> {
        Axis { title: "t", scale, marks: Vec::new(), label: |value| format!("{value}") }
    }

    #[test]
    fn marks_are_round_numbers_within_the_values() {
        let linear = Mapping::new(Scale::Linear, [3.0, 870.0].into_iter(), 0.0, 100.0);
        assert_eq!(linear.marks(), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!((linear.at(0.0), linear.at(435.0), linear.at(870.0)), (0.0, 50.0, 100.0));
        let log = Mapping::new(Scale::Log, [150.0, 90_000_000.0].into_iter(), 0.0, 100.0);
        let marks = log.marks();
        assert_eq!(marks.len(), 5, "{marks:?}");
        assert!(marks.iter().all(|mark| (150.0..=90_000_000.0).contains(mark)), "{marks:?}");
    }

    #[test]
    fn every_point_lies_in_the_picture_whatever_the_values() {
        for points in [vec![], vec![(0.0, 0.0)], vec![(1.0, 5.0), (2.0, 5.0)], vec![(1e-3, 1e12), (1e9, 1.0)]] {
            for scale in [Scale::Linear, Scale::Log] {
                let line = Line { name: "a<b".into(), points: points.clone(), filled: true, beside: None };
                let svg = plot(&axis(scale), &axis(scale), &[line]);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(!svg.contains("a<b"), "names are escaped");
            }
        }
    }
}
