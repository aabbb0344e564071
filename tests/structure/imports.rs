//! Which file of a crate imports from which, read from its sources.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use syn::visit::Visit;

/// A module by its names from the crate's root, which is the empty path.
type ModulePath = Vec<String>;

/// The files of a crate, and what each imports from the others.
pub struct Imports {
    modules: HashMap<ModulePath, Module>,
    /// From a file to a file that it imports from, with the names that it takes.
    arrows: BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>,
}

/// What a module declares.
struct Module {
    file: PathBuf,
    /// Each imported or re-exported name with the path it stands for.
    imports: Vec<(String, Vec<String>)>,
    /// Paths that are imported whole (`use a::*`).
    globs: Vec<Vec<String>>,
    /// Items that are defined here.
    items: BTreeSet<String>,
    /// Every other path that the code mentions.
    mentions: Vec<Vec<String>>,
}

/// Files of which each reaches each other by imports.
pub struct Circle {
    arrows: Vec<(PathBuf, PathBuf, BTreeSet<String>)>,
}

impl Circle {
    /// One line per import: `a.rs -> b.rs (names)`.
    pub fn describe(&self, root: &Path) -> String {
        let name = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
        let line = |(from, to, names): &(PathBuf, PathBuf, BTreeSet<String>)| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("{} -> {} ({})\n", name(from), name(to), names.join(", "))
        };
        self.arrows.iter().map(line).collect()
    }
}

impl Imports {
    /// Reads a crate from its `lib.rs` or `main.rs`.
    pub fn read(source: &Path) -> Self {
        let mut imports = Imports { modules: HashMap::new(), arrows: BTreeMap::new() };
        imports.read_file(source, vec![], source.parent().expect("a source lies in a folder"));
        imports.draw();
        imports
    }

    /// How many files the crate has.
    pub fn files(&self) -> usize {
        self.modules.values().map(|module| &module.file).collect::<BTreeSet<_>>().len()
    }

    /// The crate's circles.
    pub fn circles(&self) -> Vec<Circle> {
        let reach: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = self.arrows.keys().map(|file| (file, self.reach(file))).collect();
        let mut circles: Vec<BTreeSet<&PathBuf>> = Vec::new();
        for (file, reached) in &reach {
            let circle: BTreeSet<&PathBuf> =
                reached.iter().copied().filter(|other| reach.get(other).is_some_and(|back| back.contains(file))).collect();
            if circle.len() > 1 && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles.iter().map(|circle| self.within(circle)).collect()
    }

    fn within(&self, circle: &BTreeSet<&PathBuf>) -> Circle {
        let arrows = self.arrows.iter().filter(|(from, _)| circle.contains(from));
        let arrows = arrows.flat_map(|(from, to)| to.iter().map(move |(to, names)| (from.clone(), to.clone(), names.clone())));
        Circle { arrows: arrows.filter(|(_, to, _)| circle.contains(to)).collect() }
    }

    fn reach<'a>(&'a self, file: &'a PathBuf) -> BTreeSet<&'a PathBuf> {
        let mut reached = BTreeSet::new();
        let mut open = vec![file];
        while let Some(file) = open.pop() {
            for next in self.arrows.get(file).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(next) {
                    open.push(next);
                }
            }
        }
        reached
    }

    /// Reads the file of a module; `folder` is where its children's files lie.
    fn read_file(&mut self, file: &Path, path: ModulePath, folder: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.read_items(file, path, folder, &parsed.items);
    }

    fn read_items(&mut self, file: &Path, path: ModulePath, folder: &Path, items: &[syn::Item]) {
        let mut module =
            Module { file: file.to_path_buf(), imports: vec![], globs: vec![], items: BTreeSet::new(), mentions: vec![] };
        for item in items {
            Reader { module: &mut module }.visit_item(item);
            if let Some(name) = item_name(item) {
                module.items.insert(name);
            }
        }
        self.modules.insert(path.clone(), module);
        for item in items {
            let syn::Item::Mod(child) = item else { continue };
            if is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let child_path = [path.clone(), vec![name.clone()]].concat();
            match &child.content {
                Some((_, items)) => self.read_items(file, child_path, &folder.join(&name), items),
                None => {
                    let flat = folder.join(format!("{name}.rs"));
                    let nested = folder.join(&name).join("mod.rs");
                    self.read_file(if flat.is_file() { &flat } else { &nested }, child_path, &folder.join(&name));
                }
            }
        }
    }

    /// Draws an arrow for each path that leads to another file, but for those from a module to one that it lies in.
    fn draw(&mut self) {
        let mut arrows: BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let around: BTreeSet<&PathBuf> =
                (0..path.len()).filter_map(|depth| self.modules.get(&path[..depth])).map(|module| &module.file).collect();
            let imported = module.imports.iter().map(|(_, path)| path).chain(&module.globs);
            for mention in imported.chain(&module.mentions) {
                // A variable may bear a child module's name.
                if mention.len() == 1 && self.modules.contains_key(&[path.as_slice(), mention].concat()) {
                    continue;
                }
                let Some(file) = self.resolve(path, mention, &mut HashSet::new()) else { continue };
                if file != &module.file && !around.contains(file) {
                    let name = mention.last().cloned().unwrap_or_default();
                    arrows.entry(module.file.clone()).or_default().entry(file.clone()).or_default().insert(name);
                }
            }
        }
        self.arrows = arrows;
    }

    /// The file that defines what a path means in a module; `None` where it leads out of the crate. `tried` keeps imports that lead back to themselves
    /// from going round.
    fn resolve(&self, from: &[String], segments: &[String], tried: &mut HashSet<(ModulePath, Vec<String>)>) -> Option<&PathBuf> {
        if !tried.insert((from.to_vec(), segments.to_vec())) {
            return None;
        }
        let module = self.modules.get(from)?;
        let Some((first, rest)) = segments.split_first() else { return Some(&module.file) };
        match first.as_str() {
            "crate" => return self.resolve(&[], rest, tried),
            "self" => return self.resolve(from, rest, tried),
            "super" => return self.resolve(from.split_last()?.1, rest, tried),
            _ => {}
        }
        let child = [from, std::slice::from_ref(first)].concat();
        if self.modules.contains_key(&child) {
            return self.resolve(&child, rest, tried);
        }
        if module.items.contains(first) {
            return Some(&module.file);
        }
        if let Some((_, path)) = module.imports.iter().find(|(name, _)| name == first) {
            return self.resolve(from, path, tried);
        }
        let inside = |glob: &&Vec<String>| {
            let first = glob.first().map_or("", String::as_str);
            ["crate", "self", "super"].contains(&first)
                || module.items.contains(first)
                || self.modules.contains_key(&[from, &glob[..1]].concat())
        };
        module.globs.iter().filter(inside).find_map(|glob| self.resolve(from, &[glob.as_slice(), segments].concat(), tried))
    }
}

/// Collects what the code of one module mentions.
struct Reader<'a> {
    module: &'a mut Module,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        // Child modules are read by themselves.
        if matches!(item, syn::Item::Mod(_)) || is_test(item_attributes(item)) {
            return;
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.visit_use(&item.tree, vec![]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.module.mentions.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_tokens(item.tokens.clone());
    }

    // Derive macros read paths too, as in `#[error("{}", MAX)]`.
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.visit_tokens(list.tokens.clone());
        }
    }
}

impl Reader<'_> {
    fn visit_use(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        match tree {
            syn::UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.visit_use(&inner.tree, path);
            }
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.module.imports.push((path.last().cloned().unwrap_or_default(), path));
            }
            syn::UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.module.imports.push((name.ident.to_string(), path));
            }
            syn::UseTree::Rename(renamed) => {
                path.push(renamed.ident.to_string());
                self.module.imports.push((renamed.rename.to_string(), path));
            }
            syn::UseTree::Glob(_) => self.module.globs.push(path),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.visit_use(tree, path.clone())),
        }
    }

    /// Paths within a macro's call, whose grammar is the macro's own: names joined by `::`.
    fn visit_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end_path(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.end_path(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.visit_tokens(group.stream());
                    }
                }
            }
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.module.mentions.push(path);
        }
    }
}

fn item_name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn item_attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether an item is compiled for tests only.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return attribute.path().is_ident("test") };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    })
}
