//! Imports in `src` go one way: following them never leads back. So each file can be read after those that it imports.
//!
//! Looked at are the `use` declarations with paths that begin with `crate` or `super`, those of tests aside. What a module hands
//! on from a module inside it counts as imported from there. Imports between a module and those inside it do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The names of a module from the root: of `src/a/b.rs` those are `a` and `b`.
type Module = Vec<String>;

/// Returns all source files below `directory`.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("it can be read").map(|entry| entry.expect("it can be read").path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let below = directories.iter().flat_map(|directory| sources(directory));
    files.into_iter().filter(is_source).chain(below).collect()
}

fn module_of(file: &Path, root: &Path) -> Module {
    let path = file.strip_prefix(root).expect("it is below the root").with_extension("");
    let mut module: Module = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|name| matches!(&**name, "mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// Returns the paths of a `use` declaration without braces: of `a::{b, c::d}` those are `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.trim().to_owned()];
    };
    let inside = tree[open + 1..].strip_suffix('}').expect("braces are closed");
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, character) in inside.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(part).into_iter().map(|path| format!("{}{path}", &tree[..open]))).collect()
}

/// Returns the paths of the `use` declarations of a file, as they are written.
fn declarations(text: &str) -> Vec<String> {
    // Tests come last in a file.
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let before = rest[..at].rsplit('\n').next().unwrap_or_default().trim_start();
        let is_declaration = before.is_empty() || before.starts_with("pub");
        rest = &rest[at + "use ".len()..];
        let Some(end) = rest.find(';').filter(|_| is_declaration) else { continue };
        let tree = &rest[..end];
        // Text in quotation marks may begin with that word, too.
        if tree.chars().all(|one| one.is_alphanumeric() || "_:{}*, \n".contains(one)) {
            paths.extend(expand(&tree.replace('\n', " ")));
        }
    }
    paths
}

/// Returns the paths that a file uses, from the root of its crate.
fn imports(text: &str, module: &Module) -> Vec<Vec<String>> {
    let is_ours = |path: &String| path.starts_with("crate::") || path.starts_with("super::");
    let paths = declarations(text).into_iter().filter(is_ours);
    let resolve = |path: String| {
        let names: Vec<_> = path.split("::").map(|name| name.trim().to_owned()).collect();
        let supers = names.iter().take_while(|name| *name == "super").count();
        let base = module[..module.len().saturating_sub(supers)].iter().cloned();
        if supers > 0 { base.chain(names[supers..].iter().cloned()).collect() } else { names[1..].to_vec() }
    };
    paths.map(resolve).collect()
}

/// Returns what a module hands on from modules inside it: the path that others use, and the module.
fn handed_on(text: &str, module: &Module, modules: &BTreeSet<Module>) -> Vec<(Vec<String>, Module)> {
    let inside = |path: String| {
        let (child, name) = path.rsplit_once("::").unwrap_or_default();
        let child: Module = module.iter().cloned().chain(child.split("::").map(str::to_owned)).collect();
        let used = module.iter().cloned().chain([name.trim().to_owned()]).collect();
        modules.contains(&child).then_some((used, child))
    };
    declarations(text).into_iter().filter_map(inside).collect()
}

/// Returns the imports between the modules below `root`.
fn graph(root: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let files: Vec<_> = sources(root)
        .into_iter()
        .filter(|file| file.file_stem().is_some_and(|stem| stem != "tests"))
        .filter(|file| !file.iter().any(|part| part == "tests" || part == "bin"))
        .collect();
    let modules: BTreeSet<_> = files.iter().map(|file| module_of(file, root)).collect();
    let read = |file: &PathBuf| fs::read_to_string(file).expect("it can be read");
    let re_exported: BTreeMap<_, _> =
        files.iter().flat_map(|file| handed_on(&read(file), &module_of(file, root), &modules)).collect();
    let module_in = |path: &[String]| {
        if let Some(module) = re_exported.get(path) {
            return module.clone();
        }
        let mut longest = path.to_vec();
        while !longest.is_empty() && !modules.contains(&longest) {
            longest.pop();
        }
        longest
    };
    let mut graph = BTreeMap::new();
    for file in &files {
        let module = module_of(file, root);
        let used = imports(&read(file), &module).into_iter().map(|path| module_in(&path));
        let is_other = |used: &Module| !used.is_empty() && !used.starts_with(&module) && !module.starts_with(used);
        graph.insert(module.clone(), used.filter(is_other).collect());
    }
    graph
}

/// Returns a way along imports that leads back to where it began, if there is one.
fn circle(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    fn visit(
        module: &Module,
        graph: &BTreeMap<Module, BTreeSet<Module>>,
        done: &mut BTreeSet<Module>,
        way: &mut Vec<Module>,
    ) -> Option<Vec<Module>> {
        if let Some(at) = way.iter().position(|before| before == module) {
            return Some(way[at..].to_vec());
        }
        if done.contains(module) {
            return None;
        }
        way.push(module.clone());
        let found = graph.get(module)?.iter().find_map(|used| visit(used, graph, done, way));
        way.pop();
        done.insert(module.clone());
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| visit(module, graph, &mut done, &mut Vec::new()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn imports_never_lead_back() {
    let graph = graph(&root());
    let edges: usize = graph.values().map(BTreeSet::len).sum();
    assert!(graph.len() > 50 && edges > 100, "only {} modules and {edges} imports were found", graph.len());
    let circle = circle(&graph).map(|way| way.iter().map(|module| module.join("::")).collect::<Vec<_>>());
    assert_eq!(circle, None, "each of these imports the next one, and the last one the first");
}

#[test]
fn a_circle_is_found_whatever_the_imports_look_like() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        fs::write(path, text).expect("it can be written");
    };
    write("lib.rs", "mod a;\nmod b;\nmod c;\n");
    write("a.rs", "use std::io;\npub(crate) use super::b::{\n    One,\n    inner::{Two, Three},\n};\n");
    write("b.rs", "mod inner;\nuse inner::Two;\n#[cfg(test)]\nmod tests {\n    use crate::a::Other;\n}\n");
    write("b/inner.rs", "use super::One;\n");
    write("c.rs", "use crate::a::Any;\n");
    assert_eq!(circle(&graph(directory.path())), None);
    write("b/inner.rs", "use super::super::c::Any as Some;\n");
    let names = |way: Vec<Module>| way.iter().map(|module| module.join("::")).collect::<Vec<_>>();
    assert_eq!(circle(&graph(directory.path())).map(names), Some(vec!["a".to_owned(), "b::inner".into(), "c".into()]));
    // The same through a module that hands it on.
    write("b.rs", "mod inner;\npub(crate) use inner::Two;\n");
    write("a.rs", "use super::b::Two;\n");
    assert_eq!(circle(&graph(directory.path())).map(names), Some(vec!["a".to_owned(), "b::inner".into(), "c".into()]));
}
