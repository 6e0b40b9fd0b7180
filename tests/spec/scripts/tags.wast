;; Tags are imported by their types, and identified by what defines them.

(module $M (tag (export "t")) (tag (export "n") (param i32))
  (func (export "throw") (param i32) (throw 1 (local.get 0))))
(register "M" $M)
(module (tag (import "M" "t")))
(assert_unlinkable (module (tag (import "M" "t") (param i32))) "incompatible import type")
(assert_unlinkable (module (tag (import "M" "n") (param i64))) "incompatible import type")
(assert_unlinkable (module (func (import "M" "t"))) "incompatible import type")
(assert_invalid (module (type (func (result i32))) (tag (type 0))) "non-empty tag result type")

(module
  (tag $n (import "M" "n") (param i32)) (tag $again (import "M" "n") (param i32)) (tag $other (param i32))
  (func $throw (import "M" "throw") (param i32))
  (func (export "catch") (param i32) (result i32)
    (block $h (result i32) (try_table (catch $other $h) (catch $again $h) (call $throw (local.get 0))) (i32.const -1)))
  (func (export "rethrow") (param i32)
    (block $h (result exnref) (try_table (catch_all_ref $h) (call $throw (local.get 0))) (return)) (throw_ref))
  (func (export "null") (result exnref) (ref.null exn)))
(assert_return (invoke "catch" (i32.const 7)) (i32.const 7))
(assert_exception (invoke "rethrow" (i32.const 7)))
(assert_return (invoke "null") (ref.null exn))
(assert_exception (invoke $M "throw" (i32.const 1)))
