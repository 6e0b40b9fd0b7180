;; Types of tags are compared as groups.

(module $M (rec (type $a (func)) (type $b (func))) (tag (export "t") (type $a)))
(register "M" $M)
(module (rec (type $a (func)) (type $b (func))) (tag (import "M" "t") (type $a)))
(assert_unlinkable (module (rec (type $a (func)) (type $b (func))) (tag (import "M" "t") (type $b))) "incompatible import type")
(assert_unlinkable (module (tag (import "M" "t"))) "incompatible import type")
