//! Who imports whom: the files of a crate, and what each names of the others.
//!
//! An import leads to the file that defines what is named, through re-exports: a `mod.rs` that only declares modules
//! and hands on their names is imported by nobody. Code that only unit tests compile is left out: a test may look
//! into its neighbours.
use super::{
    modules,
    source::{self, Source},
};
use proc_macro2::{LineColumn, TokenStream, TokenTree};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use syn::{
    Attribute, Expr, ImplItem, Item, ItemMacro, ItemMod, ItemUse, Macro, Meta, Token, TraitItem, UseTree,
    VisRestricted, parse::Parser, punctuated::Punctuated, visit::Visit,
};

/// The files that are compiled as one crate, and their imports of each other.
pub(super) struct Crate {
    /// The file that Cargo, or another file, names.
    pub(super) root: String,
    /// Every file, the root first.
    pub(super) files: Vec<String>,
    /// In the order of the text, once for each pair of files.
    pub(super) imports: Vec<Import>,
}

/// A file names what another one defines.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) from: String,
    pub(super) line: usize,
    pub(super) to: String,
    /// What is named, as it is written.
    pub(super) name: String,
}

/// Every crate of the workspace.
///
/// # Errors
/// What cannot be read, a line for each.
pub(super) fn crates(files: &[Source], metadata: &Value, root: &Path) -> Result<Vec<Crate>, Vec<String>> {
    let rust: Vec<&Source> = files.iter().filter(|file| file.path.ends_with(".rs")).collect();
    let (mut crates, mut faults) = (Vec::new(), Vec::new());
    for path in modules::roots(&rust, metadata, root) {
        if let Some(file) = rust.iter().find(|file| file.path == path) {
            match read(&rust, file) {
                Ok(found) => crates.push(found),
                Err(fault) => faults.push(fault),
            }
        }
    }
    if faults.is_empty() { Ok(crates) } else { Err(faults) }
}

/// Reads a crate from its root.
fn read(rust: &[&Source], root: &Source) -> Result<Crate, String> {
    let mut reader = Reader { rust, modules: Vec::new() };
    let module = reader.open(root, None, &folder(&root.path))?;
    debug_assert_eq!(module, ROOT);
    let modules = reader.modules;
    let mut files: Vec<String> = Vec::new();
    for module in &modules {
        if !files.contains(&module.file) {
            files.push(module.file.clone());
        }
    }
    let mut found = BTreeMap::new();
    for (index, module) in modules.iter().enumerate() {
        for named in &module.named {
            let Some(Target::Item(owner)) = resolve(&modules, index, &named.path, 0) else { continue };
            let (from, to) = (&module.file, &modules[owner].file);
            if from != to {
                let (name, line) = (named.path.join("::"), named.line);
                let import = Import { from: from.clone(), line, to: to.clone(), name };
                let first = found.entry((from.clone(), to.clone())).or_insert_with(|| import.clone());
                if import.line < first.line {
                    *first = import;
                }
            }
        }
    }
    Ok(Crate { root: root.path.clone(), files, imports: found.into_values().collect() })
}

/// The root's place among modules.
const ROOT: usize = 0;

/// A module, in a file of its own or within another's.
struct Module {
    file: String,
    parent: Option<usize>,
    /// What its names stand for. A type and a function may share one.
    names: BTreeMap<String, Vec<Name>>,
    /// Modules and enumerations of which everything is imported.
    globs: Vec<Vec<String>>,
    /// The paths in its code.
    named: BTreeSet<Named>,
}

enum Name {
    Item,
    Module(usize),
    Imported(Vec<String>),
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    line: usize,
    path: Vec<String>,
}

/// What a path leads to.
enum Target {
    /// Something that this module defines.
    Item(usize),
    Module(usize),
}

/// Follows a path from a module; nothing if it leaves the crate. The depth ends imports that lead to each other.
fn resolve(modules: &[Module], from: usize, path: &[String], depth: usize) -> Option<Target> {
    const DEPTH_MAX: usize = 8;
    if depth == DEPTH_MAX {
        return None;
    }
    let mut at = from;
    for (place, segment) in path.iter().enumerate() {
        at = match segment.as_str() {
            "crate" => ROOT,
            "self" => at,
            "super" => modules[at].parent?,
            name => match find(modules, at, name, (place == 0).then_some(path), depth)? {
                Target::Module(module) => module,
                item @ Target::Item(_) => return Some(item),
            },
        };
    }
    Some(Target::Module(at))
}

/// What a name means in a module. `whole` is the path that it begins, if it does: `use log; use log::info;` do not
/// lead to each other.
fn find(modules: &[Module], at: usize, name: &str, whole: Option<&[String]>, depth: usize) -> Option<Target> {
    for meaning in modules[at].names.get(name).into_iter().flatten() {
        match meaning {
            Name::Module(module) => return Some(Target::Module(*module)),
            Name::Item => return Some(Target::Item(at)),
            Name::Imported(path) if whole.is_some_and(|whole| whole == path) => {}
            Name::Imported(path) => {
                if let Some(target) = resolve(modules, at, path, depth + 1) {
                    return Some(target);
                }
            }
        }
    }
    modules[at].globs.iter().find_map(|glob| match resolve(modules, at, glob, depth + 1)? {
        Target::Module(module) if module != at => find(modules, module, name, None, depth + 1),
        _ => None,
    })
}

/// Reads the modules of a crate.
struct Reader<'r> {
    rust: &'r [&'r Source],
    modules: Vec<Module>,
}

impl Reader<'_> {
    /// Reads a file as a module whose children are in a folder.
    fn open(&mut self, file: &Source, parent: Option<usize>, children: &str) -> Result<usize, String> {
        let parsed = syn::parse_file(&file.text).map_err(|error| {
            let LineColumn { line, .. } = error.span().start();
            format!("{}:{line}: cannot be read: {error}", file.path)
        })?;
        self.module(&file.path, parent, children, &parsed.items)
    }

    fn module(&mut self, file: &str, parent: Option<usize>, children: &str, items: &[Item]) -> Result<usize, String> {
        let index = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            names: BTreeMap::new(),
            globs: Vec::new(),
            named: BTreeSet::new(),
        });
        for item in items.iter().filter(|item| !is_test(attributes(item))) {
            if let Item::Mod(module) = item {
                if let Some(child) = self.child(module, index, children)? {
                    self.name(index, module.ident.to_string(), Name::Module(child));
                }
                continue;
            }
            if let Some(name) = defined(item) {
                self.name(index, name, Name::Item);
            }
            Visitor { module: &mut self.modules[index] }.visit_item(item);
        }
        Ok(index)
    }

    fn child(&mut self, module: &ItemMod, parent: usize, children: &str) -> Result<Option<usize>, String> {
        let name = module.ident.to_string();
        if let Some((_, items)) = &module.content {
            let file = self.modules[parent].file.clone();
            return Ok(Some(self.module(&file, Some(parent), &format!("{children}/{name}"), items)?));
        }
        let places = match explicit_path(module) {
            Some(path) => vec![source::joined(&self.modules[parent].file, &path)],
            None => vec![format!("{children}/{name}.rs"), format!("{children}/{name}/mod.rs")],
        };
        let rust = self.rust;
        // A file that is not there is the compiler's to complain of.
        let Some(file) = rust.iter().find(|file| places.contains(&file.path)) else { return Ok(None) };
        let children = match file.path.strip_suffix("/mod.rs") {
            Some(folder) => folder.to_owned(),
            None => file.path.trim_end_matches(".rs").to_owned(),
        };
        Ok(Some(self.open(file, Some(parent), &children)?))
    }

    fn name(&mut self, module: usize, name: String, meaning: Name) {
        self.modules[module].names.entry(name).or_default().push(meaning);
    }
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned())
}

/// The file that `#[path = "…"]` names.
fn explicit_path(module: &ItemMod) -> Option<String> {
    module.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Str(path) => Some(path.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

/// Collects what a module's code names.
struct Visitor<'m> {
    module: &'m mut Module,
}

impl Visitor<'_> {
    fn named(&mut self, line: usize, path: Vec<String>) {
        self.module.named.insert(Named { line, path });
    }

    /// Each name of `use a::{b, c as d}`.
    fn leaves(&mut self, tree: &UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        let (ident, alias) = match tree {
            UseTree::Path(path) => return self.leaves(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.leaves(tree, before)),
            UseTree::Glob(_) => return self.module.globs.push(before.to_vec()),
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        let path = if ident == "self" { before.to_vec() } else { with(ident) };
        let name = if alias == "self" { before.last().cloned() } else { Some(alias.to_string()) };
        self.named(ident.span().start().line, path.clone());
        if let Some(name) = name {
            self.module.names.entry(name).or_default().push(Name::Imported(path));
        }
    }

    /// Paths in what a macro is given, which may be anything.
    fn tokens(&mut self, tokens: &TokenStream) {
        let (mut path, mut line, mut colons) = (Vec::new(), 0, 0);
        for token in tokens.clone() {
            match &token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path, line);
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                _ => {
                    self.end(&mut path, line);
                    colons = 0;
                }
            }
            if let TokenTree::Group(group) = &token {
                self.tokens(&group.stream());
            }
        }
        self.end(&mut path, line);
    }

    fn end(&mut self, path: &mut Vec<String>, line: usize) {
        if !path.is_empty() {
            self.named(line, std::mem::take(path));
        }
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}

    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_test(attributes) {
            syn::visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let is_test = matches!(item, TraitItem::Fn(function) if is_test(&function.attrs));
        if !is_test {
            syn::visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.leaves(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (None, Some(first)) = (&path.leading_colon, path.segments.first()) {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string());
            self.named(first.ident.span().start().line, segments.collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_macro(&mut self, item: &'ast ItemMacro) {
        self.tokens(&item.mac.tokens);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.tokens(&call.tokens);
    }
}

/// The name of what an item defines.
fn defined(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether unit tests alone compile what has these attributes.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<Meta>().is_ok_and(|condition| needs_test(&condition))
    })
}

/// Whether a condition holds in unit tests alone.
fn needs_test(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => {
            let parts = Punctuated::<Meta, Token![,]>::parse_terminated.parse2(list.tokens.clone());
            let mut parts = parts.into_iter().flatten().map(|part| needs_test(&part));
            let is_any = list.path.is_ident("any");
            is_any && parts.all(|needs| needs) || list.path.is_ident("all") && parts.any(|needs| needs)
        }
        Meta::NameValue(_) => false,
    }
}
