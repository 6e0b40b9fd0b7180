;; Values of types that the engine's collector manages, and references that are never null.

(module
  (func $self (export "self") (result (ref func)) (ref.func $self))
  (type $s (struct (field i32)))
  (func (export "struct") (result structref) (struct.new $s (i32.const 1)))
  (func (export "any") (result anyref) (ref.null any)))
(assert_return (invoke "self") (ref.func))
(assert_return (invoke "struct") (ref.struct))
(assert_return (invoke "any") (ref.null any))
(module (func (export "none") (result nullref) (ref.null none)) (func (export "nofunc") (result nullfuncref) (ref.null nofunc))
  (func (export "noextern") (result nullexternref) (ref.null noextern))
  (func (export "converted") (result externref) (extern.convert_any (ref.i31 (i32.const 1)))))
(assert_return (invoke "converted") (ref.extern))
(assert_return (invoke "none") (ref.null none))
(assert_return (invoke "nofunc") (ref.null nofunc))
(assert_return (invoke "noextern") (ref.null noextern))
