//! What is changed in a module before it is compiled.
//!
//! * **Its name** becomes the one that the adapter knows its code by. A module's own name section keeps the names of its
//!   functions: Wasmer takes one name section, the last, and forgets all that an earlier one says. Other custom sections are left
//!   out, which the engine would copy and keep.
//! * **Checks**, if asked for: guest code that may compute for long looks at a flag again and again, and calls a function
//!   when it is set. Wasmer cannot interrupt guest code and have it go on.
//! * **Tables whose size cannot change** get a maximum that the engine takes for another one, [`FIXED_TABLE`], if they are
//!   exported: Wasmer 7.4.2 copies the functions of such a table into the instance that defines it, and does not see
//!   there what others put into the table.
//! * **The start function** becomes an export, which the library calls: the flag is known before it runs, and it runs as any
//!   other call into the guest does, while nothing borrows the store.
//!
//! Where checks are: at the head of each loop, and at the entry of each function that contains two calls or more. That is
//! enough. Without a loop, a function runs for no longer than its body is long, except for what it calls; functions that
//! contain one call at most can only call each other in a chain, which the stack bounds. So glue, whose functions pass a
//! call on, has no checks, and a module without any stays as it is.
//!
//! A check is `global.get flag; if; i32.const 0; call_indirect table; end`. Flag, table and the type of the function are
//! appended to the module's own, so nothing is renumbered; they are exported under names that begin with [`PRIVATE`].

use wasmer::sys::wasmparser::{
    BinaryReader, BinaryReaderError, ExternalKind, FunctionBody, KnownCustom, Operator, Parser, Payload, TableInit,
    TableSectionReader, TypeRef,
};

/// Bytes of a page of linear memory.
pub const PAGE_BYTES: u64 = 65536;

/// Maximum of a table that stands for: equal to its minimum. No engine lets a table be so large.
pub const FIXED_TABLE: u32 = 0xFFFF_FFFE;

/// How the names begin that only this library exports; a module that uses such a name is refused.
pub const PRIVATE: &str = "\u{1}wasix-dl ";
pub const FLAG: &str = "\u{1}wasix-dl flag";
pub const TABLE: &str = "\u{1}wasix-dl table";
pub const START: &str = "\u{1}wasix-dl start";

/// A module is not changed because it is malformed, or not allowed.
pub enum Refusal {
    /// The engine's own text will be better.
    Malformed,
    /// It exports a private name.
    PrivateName,
}

impl From<BinaryReaderError> for Refusal {
    fn from(_: BinaryReaderError) -> Self {
        Self::Malformed
    }
}

const TYPE: u8 = 1;
const TABLES: u8 = 4;
const GLOBALS: u8 = 6;
const EXPORTS: u8 = 7;
const START_SECTION: u8 = 8;
const CODE: u8 = 10;

/// Sections in the order in which a module has them; numbers of the core specification, with the one of tags.
const ORDER: [u8; 13] = [1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11];

fn place(section: u8) -> usize {
    ORDER.iter().position(|one| *one == section).unwrap_or(ORDER.len())
}

/// A section, or a custom one: its number and its content.
struct Section<'a> {
    number: u8,
    content: std::borrow::Cow<'a, [u8]>,
}

/// What is read of a module.
#[derive(Default)]
struct Outline<'a> {
    types: u64,
    globals: u64,
    tables: u64,
    start: Option<u32>,
    bodies: Vec<FunctionBody<'a>>,
    /// The last name section without its first subsection, the module's name.
    names: Vec<u8>,
    /// Indices of tables of the module's own that cannot grow.
    fixed: Vec<u64>,
    exported_tables: Vec<u64>,
    imported_tables: u64,
}

/// Returns the module that is compiled in place of one.
///
/// # Errors
/// The module must not, or cannot, be changed.
pub fn rewritten(wasm: &[u8], name: &str, checks: bool) -> Result<Vec<u8>, Refusal> {
    let (outline, mut sections) = outlined(wasm)?;
    if outline.exported_tables.iter().any(|table| outline.fixed.contains(table)) {
        for section in &mut sections {
            if section.number == TABLES {
                section.content = with_loose_tables(&section.content, &outline)?.into();
            }
        }
    }
    if checks {
        let code = checked_code(wasm, &outline)?;
        if let Some(code) = code {
            add_checks(&mut sections, &outline, code);
        }
    }
    export_start(&mut sections, &outline);
    sections.push(name_section(name, &outline.names));
    let mut out = wasm[..8].to_vec();
    for section in sections {
        out.push(section.number);
        unsigned(section.content.len() as u64, &mut out);
        out.extend_from_slice(&section.content);
    }
    Ok(out)
}

fn outlined(wasm: &[u8]) -> Result<(Outline<'_>, Vec<Section<'_>>), Refusal> {
    let mut outline = Outline::default();
    let mut sections = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        match &payload {
            Payload::TypeSection(reader) => {
                for group in reader.clone() {
                    outline.types += group?.types().len() as u64;
                }
            }
            Payload::ImportSection(reader) => {
                for import in reader.clone().into_imports() {
                    match import?.ty {
                        TypeRef::Global(_) => outline.globals += 1,
                        TypeRef::Table(_) => outline.imported_tables += 1,
                        _ => (),
                    }
                }
                outline.tables = outline.imported_tables;
            }
            Payload::TableSection(reader) => {
                for table in reader.clone() {
                    let kind = table?.ty;
                    if kind.maximum == Some(kind.initial) && kind.initial < u64::from(FIXED_TABLE) {
                        outline.fixed.push(outline.tables);
                    }
                    outline.tables += 1;
                }
            }
            Payload::GlobalSection(reader) => outline.globals += u64::from(reader.count()),
            Payload::ExportSection(reader) => {
                for export in reader.clone() {
                    let export = export?;
                    if export.name.starts_with(PRIVATE) {
                        return Err(Refusal::PrivateName);
                    }
                    if export.kind == ExternalKind::Table {
                        outline.exported_tables.push(u64::from(export.index));
                    }
                }
            }
            Payload::StartSection { func, .. } => outline.start = Some(*func),
            Payload::CodeSectionEntry(body) => outline.bodies.push(body.clone()),
            Payload::CustomSection(reader) => {
                if let KnownCustom::Name(_) = reader.as_known() {
                    outline.names = function_names(reader.data()).unwrap_or_default();
                }
                continue;
            }
            _ => (),
        }
        if let Some((number, range)) = payload.as_section() {
            let content = wasm.get(range.start as usize..range.end as usize).ok_or(Refusal::Malformed)?;
            sections.push(Section { number, content: content.into() });
        }
    }
    Ok((outline, sections))
}

/// Returns a name section's subsections but the first one, the module's name; nothing if they are malformed.
fn function_names(data: &[u8]) -> Option<Vec<u8>> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let begin = at;
        let number = data[at];
        at += 1;
        let size = usize::try_from(read_unsigned(data, &mut at)?).ok()?;
        let end = at.checked_add(size)?;
        if number != 0 {
            kept.extend_from_slice(data.get(begin..end)?);
        }
        at = end;
    }
    Some(kept)
}

fn name_section(name: &str, functions: &[u8]) -> Section<'static> {
    let mut module = Vec::new();
    text(name, &mut module);
    let mut content = Vec::new();
    text("name", &mut content);
    content.push(0);
    unsigned(module.len() as u64, &mut content);
    content.extend_from_slice(&module);
    content.extend_from_slice(functions);
    Section { number: 0, content: content.into() }
}

/// Returns the table section with another maximum for tables that are exported and cannot grow.
fn with_loose_tables(content: &[u8], outline: &Outline<'_>) -> Result<Vec<u8>, Refusal> {
    let reader = TableSectionReader::new(BinaryReader::new(content, 0))?;
    let mut out = Vec::new();
    unsigned(u64::from(reader.count()), &mut out);
    let tables: Vec<_> = reader.into_iter_with_offsets().collect::<Result<_, _>>()?;
    let ends = tables.iter().skip(1).map(|(begin, _)| *begin as usize).chain([content.len()]);
    for (index, ((begin, table), end)) in (outline.imported_tables..).zip(tables.iter().zip(ends)) {
        let loose = outline.fixed.contains(&index) && outline.exported_tables.contains(&index);
        let plain = matches!(table.init, TableInit::RefNull) && !table.ty.table64;
        if loose && plain && table.ty.element_type.is_func_ref() {
            out.extend([0x70, 1]); // of functions, with a maximum
            unsigned(table.ty.initial, &mut out);
            unsigned(u64::from(FIXED_TABLE), &mut out);
        } else {
            out.extend_from_slice(&content[*begin as usize..end]);
        }
    }
    Ok(out)
}

/// Returns the code section with checks, or None if no function needs one.
fn checked_code(wasm: &[u8], outline: &Outline<'_>) -> Result<Option<Vec<u8>>, Refusal> {
    let mut check = vec![0x23]; // global.get
    unsigned(outline.globals, &mut check);
    check.extend([0x04, 0x40, 0x41, 0x00, 0x11]); // if, without values; i32.const 0; call_indirect
    unsigned(outline.types, &mut check);
    unsigned(outline.tables, &mut check);
    check.push(0x0b); // end
    let mut code = Vec::with_capacity(wasm.len());
    unsigned(outline.bodies.len() as u64, &mut code);
    let mut any = false;
    for body in &outline.bodies {
        let range = body.range();
        let (start, end) = (range.start as usize, range.end as usize);
        let places = check_places(body)?;
        any |= !places.is_empty();
        unsigned((end - start + places.len() * check.len()) as u64, &mut code);
        let mut at = start;
        for place in places {
            code.extend_from_slice(&wasm[at..place]);
            code.extend_from_slice(&check);
            at = place;
        }
        code.extend_from_slice(&wasm[at..end]);
    }
    Ok(any.then_some(code))
}

/// Returns where in the module checks of a function go, in order.
fn check_places(body: &FunctionBody<'_>) -> Result<Vec<usize>, Refusal> {
    let mut reader = body.get_operators_reader()?;
    let entry = reader.original_position() as usize;
    let (mut places, mut calls) = (Vec::new(), 0);
    while !reader.eof() {
        match reader.read()? {
            Operator::Loop { .. } => places.push(reader.original_position() as usize),
            Operator::Call { .. } | Operator::CallIndirect { .. } | Operator::CallRef { .. } => calls += 1,
            _ => (),
        }
    }
    if calls > 1 {
        places.insert(0, entry);
    }
    Ok(places)
}

fn add_checks(sections: &mut Vec<Section<'_>>, outline: &Outline<'_>, code: Vec<u8>) {
    for section in sections.iter_mut() {
        if section.number == CODE {
            section.content = code.into();
            break;
        }
    }
    append(sections, TYPE, 1, &[0x60, 0, 0]); // a function without parameters and results
    append(sections, TABLES, 1, &[0x70, 0, 1]); // of functions, at least one: a maximum would bring the copy mentioned above
    append(sections, GLOBALS, 1, &[0x7f, 1, 0x41, 0, 0x0b]); // i32, mutable, at first 0
    let mut exports = Vec::new();
    for (name, kind, index) in [(FLAG, 3, outline.globals), (TABLE, 1, outline.tables)] {
        text(name, &mut exports);
        exports.push(kind);
        unsigned(index, &mut exports);
    }
    append(sections, EXPORTS, 2, &exports);
}

/// Makes an export of the start function.
fn export_start(sections: &mut Vec<Section<'_>>, outline: &Outline<'_>) {
    let Some(start) = outline.start else { return };
    sections.retain(|section| section.number != START_SECTION);
    let mut export = Vec::new();
    text(START, &mut export);
    export.push(0);
    unsigned(u64::from(start), &mut export);
    append(sections, EXPORTS, 1, &export);
}

/// Adds entries to a section that is a list, which a module may lack.
fn append(sections: &mut Vec<Section<'_>>, number: u8, count: u64, entries: &[u8]) {
    if let Some(section) = sections.iter_mut().find(|one| one.number == number) {
        let mut at = 0;
        let former = read_unsigned(&section.content, &mut at).unwrap_or(0);
        let mut content = Vec::with_capacity(section.content.len() + entries.len() + 1);
        unsigned(former + count, &mut content);
        content.extend_from_slice(&section.content[at..]);
        content.extend_from_slice(entries);
        section.content = content.into();
        return;
    }
    let mut content = Vec::new();
    unsigned(count, &mut content);
    content.extend_from_slice(entries);
    let follows = |one: &Section<'_>| one.number != 0 && place(one.number) > place(number);
    let at = sections.iter().position(follows).unwrap_or(sections.len());
    sections.insert(at, Section { number, content: content.into() });
}

fn text(text: &str, out: &mut Vec<u8>) {
    unsigned(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Writes a number as LEB128.
pub fn unsigned(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Reads a number of LEB128 and moves behind it.
fn read_unsigned(data: &[u8], at: &mut usize) -> Option<u64> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = *data.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
        shift += 7;
    }
}
