/// Integer instructions that work on each element by itself.
enum VectorLanes: UInt16 {
    case and, andNot, or, xor
    case add8, add16, add32, add64, sub8, sub16, sub32, sub64
    case addSigned8, addSigned16, addUnsigned8, addUnsigned16, subSigned8, subSigned16, subUnsigned8, subUnsigned16
    case equal8, equal16, equal32, equal64, greater8, greater16, greater32, greater64
    case minU8, minU16, minU32, minS8, minS16, minS32, maxU8, maxU16, maxU32, maxS8, maxS16, maxS32
    case average8, average16, abs8, abs16, abs32, sign8, sign16, sign32
    case mulLow16, mulHigh16, mulHighU16, mulHighRound16, mulLow32, mulEvenU32, mulEvenS32, mulAdd16, mulAddU8
    case shiftLeft16, shiftLeft32, shiftLeft64, shiftRight16, shiftRight32, shiftRight64, shiftArithmetic16, shiftArithmetic32
    case shiftLeftEach32, shiftLeftEach64, shiftRightEach32, shiftRightEach64, shiftArithmeticEach32
    case test, test32, test64
}

extension Core {

    func executeLanes(_ code: VectorLanes, _ o: VectorOperands) {
        typealias B = SIMD16<UInt8>
        typealias W = SIMD8<UInt16>
        typealias D = SIMD4<UInt32>
        typealias Q = SIMD2<UInt64>
        switch code {
        case .and: o.map(Q.self) { $0 & $1 }
        case .andNot: o.map(Q.self) { ~$0 & $1 }
        case .or: o.map(Q.self) { $0 | $1 }
        case .xor: o.map(Q.self) { $0 ^ $1 }
        case .add8: o.map(B.self) { $0 &+ $1 }
        case .add16: o.map(W.self) { $0 &+ $1 }
        case .add32: o.map(D.self) { $0 &+ $1 }
        case .add64: o.map(Q.self) { $0 &+ $1 }
        case .sub8: o.map(B.self) { $0 &- $1 }
        case .sub16: o.map(W.self) { $0 &- $1 }
        case .sub32: o.map(D.self) { $0 &- $1 }
        case .sub64: o.map(Q.self) { $0 &- $1 }
        case .equal8: o.map(B.self) { unsafeBitCast($0 .== $1, to: B.self) }
        case .equal16: o.map(W.self) { unsafeBitCast($0 .== $1, to: W.self) }
        case .equal32: o.map(D.self) { unsafeBitCast($0 .== $1, to: D.self) }
        case .equal64: o.each(UInt64.self) { $0 == $1 ? .max : 0 }
        case .greater8: o.map(SIMD16<Int8>.self) { unsafeBitCast($0 .> $1, to: SIMD16<Int8>.self) }
        case .greater16: o.map(SIMD8<Int16>.self) { unsafeBitCast($0 .> $1, to: SIMD8<Int16>.self) }
        case .greater32: o.map(SIMD4<Int32>.self) { unsafeBitCast($0 .> $1, to: SIMD4<Int32>.self) }
        case .greater64: o.each(Int64.self) { $0 > $1 ? -1 : 0 }
        case .minU8: o.map(B.self) { pointwiseMin($0, $1) }
        case .maxU8: o.map(B.self) { pointwiseMax($0, $1) }
        case .minU16: o.each(UInt16.self) { min($0, $1) }
        case .minU32: o.each(UInt32.self) { min($0, $1) }
        case .minS8: o.each(Int8.self) { min($0, $1) }
        case .minS16: o.each(Int16.self) { min($0, $1) }
        case .minS32: o.each(Int32.self) { min($0, $1) }
        case .maxU16: o.each(UInt16.self) { max($0, $1) }
        case .maxU32: o.each(UInt32.self) { max($0, $1) }
        case .maxS8: o.each(Int8.self) { max($0, $1) }
        case .maxS16: o.each(Int16.self) { max($0, $1) }
        case .maxS32: o.each(Int32.self) { max($0, $1) }
        default: executeSaturating(code, o)
        }
    }

    private func executeSaturating(_ code: VectorLanes, _ o: VectorOperands) {
        switch code {
        case .addSigned8: o.each(Int8.self) { Int8(clamping: Int($0) &+ Int($1)) }
        case .addSigned16: o.each(Int16.self) { Int16(clamping: Int($0) &+ Int($1)) }
        case .addUnsigned8: o.each(UInt8.self) { UInt8(clamping: Int($0) &+ Int($1)) }
        case .addUnsigned16: o.each(UInt16.self) { UInt16(clamping: Int($0) &+ Int($1)) }
        case .subSigned8: o.each(Int8.self) { Int8(clamping: Int($0) &- Int($1)) }
        case .subSigned16: o.each(Int16.self) { Int16(clamping: Int($0) &- Int($1)) }
        case .subUnsigned8: o.each(UInt8.self) { UInt8(clamping: Int($0) &- Int($1)) }
        case .subUnsigned16: o.each(UInt16.self) { UInt16(clamping: Int($0) &- Int($1)) }
        case .average8: o.each(UInt8.self) { UInt8(truncatingIfNeeded: (UInt32($0) &+ UInt32($1) &+ 1) >> 1) }
        case .average16: o.each(UInt16.self) { UInt16(truncatingIfNeeded: (UInt32($0) &+ UInt32($1) &+ 1) >> 1) }
        case .abs8: o.each(Int8.self) { $1 < 0 ? 0 &- $1 : $1 }
        case .abs16: o.each(Int16.self) { $1 < 0 ? 0 &- $1 : $1 }
        case .abs32: o.each(Int32.self) { $1 < 0 ? 0 &- $1 : $1 }
        case .sign8: o.each(Int8.self) { $1 < 0 ? 0 &- $0 : $1 == 0 ? 0 : $0 }
        case .sign16: o.each(Int16.self) { $1 < 0 ? 0 &- $0 : $1 == 0 ? 0 : $0 }
        case .sign32: o.each(Int32.self) { $1 < 0 ? 0 &- $0 : $1 == 0 ? 0 : $0 }
        case .mulLow16: o.each(UInt16.self) { $0 &* $1 }
        case .mulHigh16: o.each(Int16.self) { Int16(truncatingIfNeeded: (Int32($0) &* Int32($1)) >> 16) }
        case .mulHighU16: o.each(UInt16.self) { UInt16(truncatingIfNeeded: (UInt32($0) &* UInt32($1)) >> 16) }
        case .mulHighRound16:
            o.each(Int16.self) { Int16(truncatingIfNeeded: (((Int32($0) &* Int32($1)) >> 14) &+ 1) >> 1) }
        case .mulLow32: o.each(UInt32.self) { $0 &* $1 }
        case .mulEvenU32: o.each(UInt64.self) { ($0 & 0xFFFF_FFFF) &* ($1 & 0xFFFF_FFFF) }
        case .mulEvenS32:
            o.each(Int64.self) { Int64(Int32(truncatingIfNeeded: $0)) &* Int64(Int32(truncatingIfNeeded: $1)) }
        case .mulAdd16:
            o.each(Int32.self) {
                Int32(Int16(truncatingIfNeeded: $0)) &* Int32(Int16(truncatingIfNeeded: $1)) &+ ($0 >> 16) &* ($1 >> 16)
            }
        case .mulAddU8:
            // Unsigned bytes of the first operand by signed ones of the second.
            o.each(UInt16.self) {
                let low = Int($0 & 0xFF) &* Int(Int8(truncatingIfNeeded: $1))
                let high = Int($0 >> 8) &* Int(Int8(truncatingIfNeeded: $1 >> 8))
                return UInt16(bitPattern: Int16(clamping: low &+ high))
            }
        default: executeShift(code, o)
        }
    }

    /// Shifts; Swift's own take counts beyond the width as they are meant here.
    private func executeShift(_ code: VectorLanes, _ o: VectorOperands) {
        // The count is all 64 bits of the second operand, the same for all elements.
        let wide = o.isImmediate ? UInt64(o.immediate) : o.b.loadUnaligned(as: UInt64.self)
        let n = Int(min(wide, 64))
        let v = o.isImmediate ? VectorOperands(d: o.d, a: o.b, b: o.b, bytes: o.bytes, immediate: 0, isImmediate: true) : o
        switch code {
        case .shiftLeft16: v.each(UInt16.self) { x, _ in x << n }
        case .shiftLeft32: v.each(UInt32.self) { x, _ in x << n }
        case .shiftLeft64: v.each(UInt64.self) { x, _ in x << n }
        case .shiftRight16: v.each(UInt16.self) { x, _ in x >> n }
        case .shiftRight32: v.each(UInt32.self) { x, _ in x >> n }
        case .shiftRight64: v.each(UInt64.self) { x, _ in x >> n }
        case .shiftArithmetic16: v.each(Int16.self) { x, _ in x >> n }
        case .shiftArithmetic32: v.each(Int32.self) { x, _ in x >> n }
        case .shiftLeftEach32: o.each(UInt32.self) { $0 << $1 }
        case .shiftLeftEach64: o.each(UInt64.self) { $0 << $1 }
        case .shiftRightEach32: o.each(UInt32.self) { $0 >> $1 }
        case .shiftRightEach64: o.each(UInt64.self) { $0 >> $1 }
        case .shiftArithmeticEach32: o.each(Int32.self) { $0 >> Int(min(UInt32(bitPattern: $1), 31)) }
        default: executeTest(code, o)
        }
    }

    /// PTEST, VTESTPS and VTESTPD: ZF says that no bit is in both, CF that none is in the second alone.
    private func executeTest(_ code: VectorLanes, _ o: VectorOperands) {
        let mask: UInt64 = code == .test ? .max : code == .test32 ? 0x8000_0000_8000_0000 : 1 << 63
        var both: UInt64 = 0
        var second: UInt64 = 0
        for i in 0..<(o.bytes / 8) {
            let x = VectorOperands.load(o.a, i, UInt64.self), y = VectorOperands.load(o.b, i, UInt64.self)
            both |= x & y & mask
            second |= ~x & y & mask
        }
        setArithmetic((both == 0 ? Flag.zf : 0) | (second == 0 ? Flag.cf : 0))
    }
}
