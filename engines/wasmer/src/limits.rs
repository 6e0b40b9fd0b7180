//! What the memories and tables that instances of a store define may grow to.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmer::sys::vm::{
    MemoryError, MemoryStyle, TableStyle, VMConfig, VMMemory, VMMemoryDefinition, VMTable, VMTableDefinition,
};
use wasmer::sys::{BaseTunables, Tunables};
use wasmer::{MemoryType, Pages, TableType};

use crate::rewrite::{FIXED_TABLE, PAGE_BYTES};

/// The bounds of one store.
pub struct Limits {
    pub memory_bytes: AtomicU64,
    pub table_elements: AtomicU64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: AtomicU64::new(u64::MAX), table_elements: AtomicU64::new(u64::MAX) }
    }
}

/// Entries that the engine lets a table have at most: a table type that allows more is refused by it.
const MOST_ENTRIES: u64 = 128 << 20;

/// Makes memories and tables of a store within its bounds.
pub struct Bounded {
    base: BaseTunables,
    limits: Arc<Limits>,
    config: VMConfig,
}

impl Bounded {
    pub fn new(limits: Arc<Limits>, config: VMConfig) -> Self {
        Self { base: BaseTunables::new(), limits, config }
    }

    fn memory_type(&self, kind: &MemoryType) -> Result<MemoryType, MemoryError> {
        let pages = self.limits.memory_bytes.load(Ordering::Relaxed) / PAGE_BYTES;
        // What is shared is bounded by its type alone: the protocol says so, and other stores see it.
        if kind.shared || pages >= u64::from(Pages::max_value().0) {
            return Ok(*kind);
        }
        if u64::from(kind.minimum.0) > pages {
            let text = format!("a memory of {} pages exceeds the limit of {pages}", kind.minimum.0);
            return Err(MemoryError::Generic(text));
        }
        let most = kind.maximum.map_or(pages, |maximum| pages.min(u64::from(maximum.0)));
        let mut bounded = *kind;
        bounded.maximum = Some(Pages(u32::try_from(most).expect("fewer pages than fit in 32 bits")));
        Ok(bounded)
    }

    fn table_type(&self, kind: &TableType) -> Result<TableType, String> {
        let entries = self.limits.table_elements.load(Ordering::Relaxed).min(MOST_ENTRIES);
        if u64::from(kind.minimum) > entries {
            return Err(format!("a table of {} entries exceeds the limit of {entries}", kind.minimum));
        }
        let declared = if kind.maximum == Some(FIXED_TABLE) { Some(kind.minimum) } else { kind.maximum };
        let most = declared.map_or(entries, |maximum| entries.min(u64::from(maximum)));
        let mut bounded = *kind;
        // Without a limit a table without a maximum stays one: its type is seen by modules that import it.
        bounded.maximum = if declared.is_none() && entries == MOST_ENTRIES {
            None
        } else {
            Some(u32::try_from(most).expect("fewer entries than fit in 32 bits"))
        };
        Ok(bounded)
    }
}

impl Tunables for Bounded {
    fn memory_style(&self, memory: &MemoryType) -> MemoryStyle {
        self.base.memory_style(memory)
    }

    fn table_style(&self, table: &TableType) -> TableStyle {
        self.base.table_style(table)
    }

    fn create_host_memory(&self, kind: &MemoryType, style: &MemoryStyle) -> Result<VMMemory, MemoryError> {
        self.base.create_host_memory(kind, style)
    }

    unsafe fn create_vm_memory(
        &self,
        kind: &MemoryType,
        style: &MemoryStyle,
        place: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        // SAFETY: by this function's contract, which is that of the function called.
        unsafe { self.base.create_vm_memory(&self.memory_type(kind)?, style, place) }
    }

    fn create_host_table(&self, kind: &TableType, style: &TableStyle) -> Result<VMTable, String> {
        self.base.create_host_table(kind, style)
    }

    unsafe fn create_vm_table(
        &self,
        kind: &TableType,
        style: &TableStyle,
        place: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        // SAFETY: by this function's contract, which is that of the function called.
        unsafe { self.base.create_vm_table(&self.table_type(kind)?, style, place) }
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.config
    }
}
