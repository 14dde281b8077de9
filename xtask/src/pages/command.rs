//! A command line as parts of a page.

use clap::{Arg, ArgAction, Command};

use super::roff::{Roff, bold, escape, italic};

/// What can be typed, in short.
pub(crate) fn synopsis(page: &mut Roff, command: &Command) {
    let built = build_command(command);
    let subcommands: Vec<_> = built.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    if subcommands.is_empty() {
        synopsis_line(page, built.get_name(), &built);
    }
    for subcommand in subcommands {
        synopsis_line(page, &format!("{} {}", built.get_name(), subcommand.get_name()), subcommand);
    }
}

fn synopsis_line(page: &mut Roff, name: &str, command: &Command) {
    let mut words = vec![bold(name)];
    for argument in arguments(command) {
        let repeated = matches!(argument.get_action(), ArgAction::Append);
        let dots = if repeated { "..." } else { "" };
        let typed = match argument.get_long() {
            Some(long) => format!("{}{}", bold(&format!("--{long}")), value_placeholder(argument)),
            None => value_placeholder(argument).trim_start().to_owned(),
        };
        words.push(if argument.is_required_set() { typed } else { format!("[{typed}]{dots}") });
    }
    page.line(".HP 4");
    // Not broken within one.
    page.text(&words.iter().map(|word| word.replace(' ', "\\ ")).collect::<Vec<_>>().join(" "));
}

/// Its options and arguments, each with what it is.
pub(crate) fn options(page: &mut Roff, command: &Command) {
    let built = build_command(command);
    for argument in arguments(&built) {
        let mut names = Vec::new();
        names.extend(argument.get_short().map(|short| bold(&format!("-{short}"))));
        names.extend(argument.get_long().map(|long| bold(&format!("--{long}"))));
        page.tagged_paragraph(format!("{}{}", names.join(", "), value_placeholder(argument)).trim_start());
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<_> = argument.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        let takes_value = argument.get_action().takes_values();
        let default = (takes_value && !defaults.is_empty()).then(|| format!(" [default: {}]", defaults.join(" ")));
        for (number, paragraph) in help.split("\n\n").enumerate() {
            if number > 0 {
                page.line(".IP");
            }
            let default = if number == 0 { default.as_deref().unwrap_or_default() } else { "" };
            page.text(&escape(&format!("{}{default}", join_lines(paragraph))));
        }
    }
}

/// What a subcommand does, its options, its examples.
pub(crate) fn subcommand(page: &mut Roff, command: &Command, name: &str) {
    let built = build_command(command);
    let subcommand = built.find_subcommand(name).unwrap_or_else(|| panic!("there is no command {name}"));
    page.section(&format!("{} {name}", built.get_name()));
    let about = subcommand.get_long_about().map(ToString::to_string).unwrap_or_default();
    for paragraph in about.split("\n\n").skip(1) {
        page.paragraph();
        page.text(&escape(&join_lines(paragraph)));
    }
    options(page, subcommand);
    let after = subcommand.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    for block in after.split("\n\n") {
        let (heading, lines) = block.split_once('\n').expect("a heading and lines");
        page.subsection(heading.trim_end_matches(':'));
        let lines: Vec<_> = lines.lines().map(str::trim_start).collect();
        page.example(&lines.join("\n"));
    }
}

/// As it is parsed: with --help and --version.
fn build_command(command: &Command) -> Command {
    let mut built = command.clone();
    built.build();
    built
}

/// Arguments before options, as they are typed last.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let visible = |argument: &&Arg| !argument.is_hide_set();
    let options = command.get_arguments().filter(visible).filter(|argument| !argument.is_positional());
    options.chain(command.get_positionals().filter(visible))
}

/// What an option takes, or what an argument is called.
fn value_placeholder(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return String::new();
    }
    let name = argument.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str());
    let name = if name.starts_with('[') { name.to_owned() } else { name.to_uppercase() };
    format!(" {}", italic(&name))
}

/// A paragraph on one line.
fn join_lines(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}
