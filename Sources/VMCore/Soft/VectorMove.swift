/// Instructions that move vectors, or parts of them, as they are.
enum VectorMove: UInt16 {
    /// All bytes from the second operand.
    case copy
    /// 4 or 8 bytes, the rest of the register cleared.
    case low4, low8
    /// 4 or 8 bytes, the rest from the first operand.
    case mergeLow4, mergeLow8
    /// 8 bytes to the upper half, the rest from the first operand.
    case mergeHigh8
    /// The upper 8 bytes to memory.
    case storeHigh8
    /// MOVHLPS and MOVLHPS.
    case highToLow, lowToHigh
    case maskMove
    // AVX.
    case broadcast1, broadcast2, broadcast4, broadcast8, broadcast16
    case insert16, extract16
    case zeroUpper, zeroAll
}

extension Core {
    func executeMove(_ code: VectorMove, _ form: VectorForm, _ o: VectorOperands) {
        typealias Half = SIMD2<UInt64>
        switch code {
        case .copy:
            if o.bytes == 16 {
                o.d.storeBytes(of: o.b.loadUnaligned(as: Half.self), as: Half.self)
            } else {
                o.each(UInt64.self) { $1 }
            }
        case .low4: setLow(o, UInt64(o.b.loadUnaligned(as: UInt32.self)))
        case .low8: setLow(o, o.b.loadUnaligned(as: UInt64.self))
        case .mergeLow4:
            let value = o.b.loadUnaligned(as: UInt32.self)
            o.d.storeBytes(of: o.a.loadUnaligned(as: Half.self), as: Half.self)
            o.d.storeBytes(of: value, as: UInt32.self)
        case .mergeLow8:
            let value = o.b.loadUnaligned(as: UInt64.self)
            o.d.storeBytes(of: o.a.loadUnaligned(as: Half.self), as: Half.self)
            o.d.storeBytes(of: value, as: UInt64.self)
        case .mergeHigh8, .lowToHigh:
            let value = o.b.loadUnaligned(as: UInt64.self)
            let low = o.a.loadUnaligned(as: UInt64.self)
            o.d.storeBytes(of: Half(low, value), as: Half.self)
        case .highToLow:
            let value = o.b.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
            let high = o.a.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
            o.d.storeBytes(of: Half(value, high), as: Half.self)
        case .storeHigh8: o.set(0, o.b.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        case .broadcast1: broadcast(o, UInt8.self)
        case .broadcast2: broadcast(o, UInt16.self)
        case .broadcast4: broadcast(o, UInt32.self)
        case .broadcast8: broadcast(o, UInt64.self)
        case .broadcast16:
            let value = o.b.loadUnaligned(as: Half.self)
            o.d.storeBytes(of: value, as: Half.self)
            o.d.storeBytes(of: value, toByteOffset: 16, as: Half.self)
        case .insert16:
            let value = o.b.loadUnaligned(as: Half.self)
            o.d.storeBytes(of: o.a.loadUnaligned(as: SIMD4<UInt64>.self), as: SIMD4<UInt64>.self)
            o.d.storeBytes(of: value, toByteOffset: 16 * Int(o.immediate & 1), as: Half.self)
        case .extract16:
            o.d.storeBytes(of: o.b.loadUnaligned(fromByteOffset: 16 * Int(o.immediate & 1), as: Half.self), as: Half.self)
        case .zeroUpper, .zeroAll:
            for i in 0..<(is64 ? 16 : 8) as Range<UInt8> {
                let place = s.floatingPoint.vector(i)
                if code == .zeroAll { place.storeBytes(of: Half(), as: Half.self) }
                place.storeBytes(of: Half(), toByteOffset: 16, as: Half.self)
            }
        case .maskMove: break
        }
    }

    /// To memory, a general or an MMX register the value alone; to a vector register with the rest cleared.
    private func setLow(_ o: VectorOperands, _ value: UInt64) {
        if o.bytes == 8 {
            o.set(0, value)
        } else {
            o.d.storeBytes(of: SIMD2(value, 0), as: SIMD2<UInt64>.self)
        }
    }

    private func broadcast<T: FixedWidthInteger>(_ o: VectorOperands, _ type: T.Type) {
        let value = o.b.loadUnaligned(as: T.self)
        for i in 0..<(o.bytes / MemoryLayout<T>.size) { o.set(i, value) }
    }

    /// MASKMOVQ and MASKMOVDQU: bytes whose mask has its top bit set, to DS:rDI. Source: Intel SDM Vol. 2B.
    func maskMove(_ op: Op) throws(Trap) {
        let form = VectorForm(bits: op.pointee.imm)
        try checkVector(form)
        let file = s.floatingPoint
        let bytes = form.usesMMX ? 8 : 16
        let offset = gpr(GPR.rdi) & op.pointee.mask
        let address = op.pointee.form.has(MicroOp.Form.checked)
            ? try linear(op.pointee.segment, offset, size: UInt64(bytes), writes: true)
            : (offset &+ segmentBase(op.pointee.segment)) & s.linearMask
        // MMX's state is entered also when the store faults (AMD processors of family 19h, measured).
        if form.usesMMX { file.enterMMX() }
        let value = form.usesMMX ? file.st(Int(form.first)) : file.vector(form.first)
        let mask = form.usesMMX ? file.st(Int(op.pointee.b)) : file.vector(op.pointee.b)
        // All bytes have to be writable, also those that aren't written (AMD processors of family 19h, measured).
        try prepareStore(address, bytes, alignment: 8)
        for i in 0..<bytes where (mask + i).load(as: UInt8.self) & 0x80 != 0 {
            try store((address &+ UInt64(i)) & s.linearMask, (value + i).load(as: UInt8.self), op)
        }
    }
}
