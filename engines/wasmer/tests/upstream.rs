//! What this library works around in Wasmer, or tells its users of. Each test names what can go once it fails.
//!
//! They use the engine directly, as it is without this library. Modules are written as texts, which Python with the package
//! `wasmtime` makes binary: the variable `PYTHON` names the interpreter. A crate that can do it would have the engine compiled
//! again, with other features of what both need.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use wasmer::sys::{Cranelift, EngineBuilder, Features};
use wasmer::{
    Engine, Extern, Function, FunctionEnv, FunctionEnvMut, FunctionType, Instance, Memory, MemoryType, Module,
    RuntimeError, Store, StoreMut, Table, Value,
};

fn engine() -> Engine {
    EngineBuilder::new(Cranelift::new()).engine().into()
}

fn binary(text: &str) -> Vec<u8> {
    let script = "import sys, wasmtime; sys.stdout.buffer.write(wasmtime.wat2wasm(sys.argv[1]))";
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let done = Command::new(python).args(["-c", script, text]).output().expect("there is a Python");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn module(engine: &Engine, text: &str) -> Result<Module, String> {
    Module::new(engine, binary(text)).map_err(|error| error.to_string())
}

fn instance(store: &mut Store, text: &str, imports: &[Extern]) -> Instance {
    let module = module(&store.engine().clone(), text).expect("the engine takes the module");
    Instance::new_by_index(store, &module, imports).expect("it can be linked")
}

fn function(instance: &Instance, name: &str) -> Function {
    instance.exports.get_function(name).expect("it is exported").clone()
}

fn table(instance: &Instance) -> Table {
    instance.exports.get_table("t").expect("it is exported").clone()
}

/// A table with the limits given; `go` calls its first function, `f` is a function to put there.
fn table_owner(limits: &str) -> String {
    format!(
        r#"(module (table (export "t") {limits} funcref) (type $number (func (result i32)))
          (func (export "go") (result i32) (call_indirect (type $number) (i32.const 0)))
          (func (export "f") (result i32) (i32.const 7)))"#
    )
}

const PLACER: &str = r#"(module (import "o" "t" (table 1 funcref)) (func $f (result i32) (i32.const 9))
  (elem (i32.const 0) func $f))"#;

/// `rewrite::FIXED_TABLE` can go.
#[test]
fn the_owner_of_an_exported_fixed_table_does_not_see_what_others_put_there() {
    for (limits, seen) in [("1 1", false), ("1", true), ("1 2", true)] {
        let mut store = Store::new(engine());
        let owner = instance(&mut store, &table_owner(limits), &[]);
        let value = Value::FuncRef(Some(function(&owner, "f")));
        table(&owner).set(&mut store, 0, value).expect("the table takes it");
        let called = function(&owner, "go").call(&mut store, &[]);
        assert_eq!(called.is_ok(), seen, "set by the host, {limits}: {called:?}");

        let owner = instance(&mut store, &table_owner(limits), &[]);
        instance(&mut store, PLACER, &[table(&owner).into()]);
        let called = function(&owner, "go").call(&mut store, &[]);
        assert_eq!(called.is_ok(), seen, "placed by another instance, {limits}: {called:?}");
    }
}

/// Throws through a function of the host, and catches.
const THROUGH: &str = r#"(module (import "host" "pass" (func $pass)) (tag $t)
  (func (export "throw") (throw $t))
  (func (export "catch") (result i32)
    (block $caught (try_table (catch $t $caught) (call $pass)) (return (i32.const 0))) (i32.const 1)))"#;

/// Calls what `pass` is to call, and lets its error pass.
fn passing(mut env: FunctionEnvMut<'_, Option<Function>>) -> Result<(), RuntimeError> {
    let next = env.data().clone().expect("the test has set it");
    next.call(&mut env, &[]).map(|_| ())
}

fn caught_through(make: impl FnOnce(&mut StoreMut<'_>, &FunctionEnv<Option<Function>>) -> Function) -> bool {
    use wasmer::AsStoreMut;
    let mut store = Store::new(engine());
    let env = FunctionEnv::new(&mut store, None);
    let pass = make(&mut store.as_store_mut(), &env);
    let guest = instance(&mut store, THROUGH, &[pass.into()]);
    *env.as_mut(&mut store) = Some(function(&guest, "throw"));
    matches!(function(&guest, "catch").call(&mut store, &[]).as_deref(), Ok([Value::I32(1)]))
}

/// The function that checks call need not be a typed one.
#[test]
fn exceptions_pass_typed_functions_of_the_host_and_no_dynamic_ones() {
    assert!(caught_through(|store, env| Function::new_typed_with_env(store, env, passing)));
    assert!(!caught_through(|store, env| {
        let kind = FunctionType::new([], []);
        Function::new_with_env(store, env, kind, |env, _: &[Value]| passing(env).map(|()| Vec::new()))
    }));
}

/// Functions of the host can be placed by `Table::set`, not only by element segments.
#[test]
fn dynamic_functions_of_the_host_cannot_be_set_into_tables() {
    let mut store = Store::new(engine());
    let owner = instance(&mut store, &table_owner("1"), &[]);
    let dynamic = Function::new(&mut store, FunctionType::new([], []), |_: &[Value]| Ok(Vec::new()));
    let set = AssertUnwindSafe(|| table(&owner).set(&mut store, 0, Value::FuncRef(Some(dynamic))));
    assert!(catch_unwind(set).is_err());
}

/// The capability `tail_calls` can be on.
#[test]
fn tail_calls_are_refused() {
    let mut features = Features::new();
    features.tail_call(true);
    let able: Engine = EngineBuilder::new(Cranelift::new()).set_features(Some(features)).engine().into();
    let text = "(module (func $f (return_call $f)))";
    for engine in [engine(), able] {
        let refused = catch_unwind(AssertUnwindSafe(|| module(&engine, text)));
        assert!(!matches!(refused, Ok(Ok(_))));
    }
}

/// The documentation need not say that there are no memories with 64-bit addresses.
#[test]
fn memories_with_64_bit_addresses_are_refused() {
    assert!(module(&engine(), "(module (memory i64 1))").is_err());
}

/// The documentation need not say that there are no typed references and no types of a collector.
#[test]
fn typed_references_and_structs_are_refused() {
    for text in ["(module (func (param (ref func))))", "(module (type (struct)))"] {
        assert!(module(&engine(), text).is_err(), "{text}");
    }
}

/// `WdEngine::compiled` need not make a pool of threads in a child.
#[test]
fn a_child_of_a_process_that_has_compiled_waits_for_threads_that_it_does_not_have() {
    let wasm = binary(r#"(module (import "a" "b" (func)) (import "a" "c" (func (param i32))))"#);
    Module::new(&engine(), &wasm).expect("a module");
    // SAFETY: the child only compiles, and ends without running anything else.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let compiled = Module::new(&engine(), &wasm).is_ok();
            libc::_exit(i32::from(!compiled));
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
        let waits = libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) == 0;
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
        assert!(waits);
    }
}

/// `rewrite::name_section` need not copy the names of functions.
#[test]
fn of_two_name_sections_the_last_one_counts_alone() {
    let engine = engine();
    let mut wasm = binary(r#"(module $own (func $inner (export "f") unreachable))"#);
    wasm.extend(b"\0\x0a\x04name\0\x03\x02it");
    let module = Module::new(&engine, wasm).expect("a module");
    let mut store = Store::new(engine);
    let made = Instance::new_by_index(&mut store, &module, &[]).expect("nothing is imported");
    let error = function(&made, "f").call(&mut store, &[]).expect_err("it traps");
    let frames: Vec<_> = error.trace().iter().map(|one| (one.module_name(), one.function_name())).collect();
    assert_eq!(frames, [("it", None)]);
}

/// A trap of an inner call can be told with the frames around the function of the host that made the call.
#[test]
fn frames_do_not_lead_through_functions_of_the_host() {
    use wasmer::AsStoreMut;
    let mut store = Store::new(engine());
    let env = FunctionEnv::new(&mut store, None);
    let pass = Function::new_typed_with_env(&mut store.as_store_mut(), &env, passing);
    let text = r#"(module (import "host" "pass" (func $pass)) (func (export "trap") unreachable)
      (func (export "outer") (call $pass)))"#;
    let guest = instance(&mut store, text, &[pass.into()]);
    *env.as_mut(&mut store) = Some(function(&guest, "trap"));
    let error = function(&guest, "outer").call(&mut store, &[]).expect_err("it traps");
    assert_eq!(error.trace().len(), 1);
}

/// `_NO_WAIT` of the adapter can go.
#[test]
fn a_wait_on_a_memory_that_is_not_shared_is_an_interruption_by_the_host() {
    let mut store = Store::new(engine());
    let text = r#"(module (memory 1) (func (export "wait")
      (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0)))))"#;
    let guest = instance(&mut store, text, &[]);
    let error = function(&guest, "wait").call(&mut store, &[]).expect_err("it traps");
    assert_eq!(error.to_trap(), Some(wasmer_types::TrapCode::HostInterrupt));
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

/// The documentation need not warn of programs that throw a lot (wasmerio/wasmer#5718).
#[test]
fn each_throw_keeps_memory_until_the_store_is_dropped() {
    const ROUNDS: i32 = 50_000;
    let text = r#"(module (tag $t) (func $throw (throw $t)) (func (export "many") (param i32)
      (loop $again (block $caught (try_table (catch_all $caught) (call $throw)))
        (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))"#;
    let mut store = Store::new(engine());
    let guest = instance(&mut store, text, &[]);
    let many = function(&guest, "many");
    many.call(&mut store, &[Value::I32(1000)]).expect("all is caught");
    let before = resident_bytes();
    many.call(&mut store, &[Value::I32(ROUNDS)]).expect("all is caught");
    let each = (resident_bytes() - before) / usize::try_from(ROUNDS).expect("positive");
    assert!((100..2000).contains(&each), "{each} bytes");
}

/// Not a fault: what the library relies on. A memory neither moves nor is another one in another store.
#[test]
fn a_shared_memory_lies_at_one_address_in_all_stores() {
    let engine = engine();
    let (mut first, mut second) = (Store::new(engine.clone()), Store::new(engine));
    let memory = Memory::new(&mut first, MemoryType::new(1, Some(1000), true)).expect("there is room");
    let shared = memory.as_shared(&first).expect("it is shared");
    let other = shared.attach(&mut second);
    let address = memory.view(&first).data_ptr();
    memory.grow(&mut first, 900).expect("there is room");
    assert_eq!((memory.view(&first).data_ptr(), other.view(&second).data_ptr()), (address, address));
    assert_eq!(other.view(&second).data_size(), 901 * 65536);
}
