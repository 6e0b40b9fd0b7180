;; Definitions that are instantiated several times, each instance with state of its own.

(module definition $Def
  (global $g (export "g") (mut i32) (i32.const 0))
  (table (export "t") 1 funcref) (memory (export "m") 1) (tag (export "e"))
  (func (export "set") (param i32) (global.set $g (local.get 0)))
  (func (export "get") (result i32) (global.get $g)))
(module instance $I1 $Def)
(module instance $I2 $Def)
(register "I1" $I1) (register "I2" $I2)

(invoke $I1 "set" (i32.const 1))
(invoke $I2 "set" (i32.const 2))
(assert_return (invoke $I1 "get") (i32.const 1))
(assert_return (get $I2 "g") (i32.const 2))

(module
  (import "I1" "g" (global $g1 (mut i32))) (import "I2" "g" (global $g2 (mut i32)))
  (import "I1" "e" (tag $e1)) (import "I2" "e" (tag $e2))
  (import "I1" "m" (memory $m1 1)) (import "I2" "m" (memory $m2 1))
  (func (export "globals") (result i32) (global.set $g1 (i32.const 5)) (global.get $g2))
  (func (export "memories") (result i32) (i32.store $m1 (i32.const 0) (i32.const 9)) (i32.load $m2 (i32.const 0)))
  (func (export "tags") (result i32)
    (block $h (try_table (catch $e2 $h) (throw $e1)) (return (i32.const 0))) (i32.const 1))
  (func (export "own") (result i32)
    (block $h (try_table (catch $e1 $h) (throw $e1)) (return (i32.const 0))) (i32.const 1)))
(assert_return (invoke "globals") (i32.const 2))
(assert_return (invoke "memories") (i32.const 0))
(assert_exception (invoke "tags"))
(assert_return (invoke "own") (i32.const 1))
(assert_return (get $I1 "g") (i32.const 5))
