//! Bars as an SVG image: groups of them on a logarithmic scale, with their figures written beside them.

use std::fmt::Write as _;

use crate::stats::format_short;

/// Colours that differ for most eyes, on a light and on a dark page.
const COLOURS: [&str; 6] = ["#777777", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"];

const BAR: usize = 11;
const GAP: usize = 9;
const LEFT: usize = 150;
const WIDTH: usize = 800;
const TOP: usize = 62;

/// A chart: for every group a value of each series.
pub(crate) struct Plot {
    /// The end of its file's name.
    pub(crate) name: &'static str,
    /// The title.
    pub(crate) title: String,
    /// The legend.
    pub(crate) series: Vec<String>,
    /// The groups, with their names; a value that is not a number is skipped.
    pub(crate) groups: Vec<(String, Vec<f64>)>,
    /// The number of the first series' colour, so that a candidate has the same one everywhere.
    pub(crate) first_colour: usize,
    /// A value that is marked by a line.
    pub(crate) mark: Option<f64>,
}

impl Plot {
    /// Returns the finished image.
    pub(crate) fn render(&self) -> String {
        let values =
            || self.groups.iter().flat_map(|(_, values)| values).copied().chain(self.mark).filter(|value| *value > 0.0);
        let least = values().fold(f64::INFINITY, f64::min) / 1.5;
        let greatest = values().fold(0.0, f64::max).max(least * 2.0);
        let length = |value: f64| (value / least).ln() / (greatest / least).ln() * (WIDTH - LEFT - 60) as f64;
        let height = TOP + self.groups.iter().map(|(_, values)| values.len() * BAR + GAP).sum::<usize>() + GAP;
        let colour_of = |number: usize| COLOURS[(self.first_colour + number) % COLOURS.len()];
        let mut svg = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(svg, "{text}").expect("a String takes everything");
        line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">"#
        ));
        line(format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##));
        line(format_args!(r#"<text x="10" y="20" font-size="14">{} (logarithmic)</text>"#, escape(&self.title)));
        for (number, name) in self.series.iter().enumerate() {
            let (x, colour) = (10 + 125 * number, colour_of(number));
            line(format_args!(r#"<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/>"#));
            line(format_args!(r#"<text x="{}" y="45" font-size="12">{}</text>"#, x + 17, escape(name)));
        }
        let mut y = TOP;
        for (name, values) in &self.groups {
            let middle = y + values.len() * BAR / 2 + 4;
            line(format_args!(
                r#"<text x="{}" y="{middle}" font-size="12" text-anchor="end">{}</text>"#,
                LEFT - 8,
                escape(name)
            ));
            for (number, &value) in values.iter().enumerate() {
                if value > 0.0 {
                    let (length, colour) = (length(value), colour_of(number));
                    line(format_args!(
                        r#"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="{}" fill="{colour}"/>"#,
                        BAR - 1
                    ));
                    let (x, below) = (LEFT as f64 + length + 4.0, y + BAR - 2);
                    line(format_args!(r#"<text x="{x:.1}" y="{below}" font-size="9">{}</text>"#, format_short(value)));
                }
                y += BAR;
            }
            y += GAP;
        }
        if let Some(mark) = self.mark {
            let x = LEFT as f64 + length(mark);
            line(format_args!(
                r##"<line x1="{x:.1}" x2="{x:.1}" y1="{}" y2="{height}" stroke="#000000" stroke-dasharray="3 3"/>"##,
                TOP - 6
            ));
        }
        line(format_args!("</svg>"));
        svg
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
