//! The results as a document: the machine, the tables, and the plots beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::plot::Plot;
use crate::table::Table;
use crate::{Context as _, Result};

/// The text between these lines is replaced each time; the text around them stays.
const BEGIN: &str = "<!-- figures: written by make bench -->";
const END: &str = "<!-- end of figures -->";

/// The parts of a section of the results.
pub(crate) struct ReportSection {
    /// Its tables.
    pub(crate) tables: Vec<Table>,
    /// Its plots.
    pub(crate) plots: Vec<Plot>,
}

impl From<Vec<Table>> for ReportSection {
    fn from(tables: Vec<Table>) -> Self {
        Self { tables, plots: Vec::new() }
    }
}

/// The results so far. They are printed at once, and written to a file at the end.
pub(crate) struct Report {
    file: Option<PathBuf>,
    text: String,
    images: Vec<(PathBuf, String)>,
}

impl Report {
    /// Starts a report that is also written to `file`.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file, text: String::new(), images: Vec::new() }
    }

    /// Adds a paragraph.
    pub(crate) fn paragraph(&mut self, paragraph: &str) {
        println!("{paragraph}\n");
        self.text.push_str(paragraph);
        self.text.push_str("\n\n");
    }

    /// Adds a section; its plots are to stand beside the file.
    pub(crate) fn section(&mut self, section: &ReportSection) -> Result<()> {
        for table in &section.tables {
            self.paragraph(table.render().trim_end());
        }
        let Some(file) = &self.file else { return Ok(()) };
        for plot in &section.plots {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let image = format!("{stem}-{}.svg", plot.name);
            self.images.push((file.with_file_name(&image), plot.render()));
            write!(self.text, "![{}]({image})\n\n", plot.title).context("writing the report")?;
        }
        Ok(())
    }

    /// Writes the file, if one is wanted.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        for (path, image) in &self.images {
            write(path, image)?;
        }
        let figures = format!("{BEGIN}\n\n{}{END}", self.text);
        let old = fs::read_to_string(&file).unwrap_or_default();
        let between = old.find(BEGIN).zip(old.find(END)).filter(|(begin, end)| begin < end);
        let text = match between {
            Some((begin, end)) => format!("{}{figures}{}", &old[..begin], &old[end + END.len()..]),
            None => format!("# Performance\n\n{figures}\n"),
        };
        write(&file, &text)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(format_args!("writing {}", path.display()))
}

/// Describes the machine, with the number of usable CPUs, in a sentence.
pub(crate) fn machine(cpus: usize) -> Result<String> {
    let setting = |name: &str| {
        let path = format!("/proc/sys/{name}");
        fs::read_to_string(&path).context(format_args!("reading {path}")).map(|text| text.trim().to_owned())
    };
    let kernel = setting("kernel/osrelease")?;
    let congestion = setting("net/ipv4/tcp_congestion_control")?;
    let info = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown CPU", |(_, model)| model.trim());
    Ok(format!("{model}, CPUs: {cpus}, Linux {kernel}, TCP {congestion}"))
}
