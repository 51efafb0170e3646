import CHostFloat

/// Floating-point instructions that are more than one of the host's.
enum FloatSpecial: UInt16 {
    /// DPPS and DPPD.
    case dot32, dot64
    /// Comparisons that set flags; the host's instruction is in the immediate field.
    case compare
    /// To and from MMX registers.
    case toMMX, truncateToMMX, doubleToMMX, truncateDoubleToMMX, fromMMX, doubleFromMMX
    /// Conversions between halves and wholes of 32 bytes.
    case widen, narrow
}

/// SSE's arithmetic, on the host's own: rounding, DAZ, FTZ and exceptions are its business.
///
/// Source: Intel SDM Vol. 1, 11.5; the order of exceptions: 11.5.2.
extension Core {
    private enum MXCSR {
        static let flags: UInt32 = 0x3F
        /// Invalid, denormal, zero divide: found before anything is calculated.
        static let early: UInt32 = 0x07
        static let underflow: UInt32 = 0x10
        static let underflowMask: UInt32 = 0x800
        static let masks: UInt32 = 0x1F80
        static let flushToZero: UInt32 = 0x8000
    }

    /// Executes an instruction of the host on 16 bytes; collects exceptions in `raised` instead of raising them.
    @inline(__always)
    func host(_ instruction: UInt16, _ first: UnsafeMutableRawPointer, _ second: UnsafeMutableRawPointer,
              _ third: UnsafeMutableRawPointer, raised: inout UInt32) {
        let guest = s.floatingPoint.mxcsr
        var mxcsr = guest & ~MXCSR.flags | MXCSR.masks
        let tracesUnderflow = guest & MXCSR.underflowMask == 0
        if tracesUnderflow { mxcsr &= ~MXCSR.flushToZero }
        let index = UInt32(instruction)
        chostfloat_sse(chostfloat_instruction(rawValue: min(index, CHOSTFLOAT_count.rawValue - 1)), first, second, third, &mxcsr)
        raised |= mxcsr & MXCSR.flags
        // Unmasked, a tiny result is an exception also when it is exact.
        if tracesUnderflow, HostFloat.hasTinyResult(index, first) { raised |= MXCSR.underflow }
    }

    /// Raises what has been collected, or notes it where it is masked.
    @inline(__always)
    func settle(raised: UInt32) throws(Trap) {
        let file = s.floatingPoint
        let unmasked = raised & ~(file.mxcsr >> 7) & MXCSR.flags
        guard unmasked != 0 else {
            file.mxcsr |= raised
            return
        }
        file.mxcsr |= unmasked & MXCSR.early != 0 ? raised & MXCSR.early : raised
        throw .exception(s.cr4 & 1 << 10 != 0 ? Vector.xm : Vector.ud)
    }

    func executeFloat(_ form: VectorForm, _ o: VectorOperands) throws(Trap) {
        let work = s.floatingPoint.firstCopy
        var raised: UInt32 = 0
        work.storeBytes(of: o.a.loadUnaligned(as: SIMD4<UInt64>.self), as: SIMD4<UInt64>.self)
        // Fused instructions take their third operand from the destination: see the decoder.
        host(form.code, work, o.b, o.b, raised: &raised)
        if o.bytes == 32 { host(form.code, work + 16, o.b + 16, o.b + 16, raised: &raised) }
        try settle(raised: raised)
        if o.bytes == 32 {
            o.d.storeBytes(of: work.load(as: SIMD4<UInt64>.self), as: SIMD4<UInt64>.self)
        } else if o.bytes == 8 {
            o.set(0, work.load(as: UInt64.self))
        } else {
            o.d.storeBytes(of: work.load(as: SIMD2<UInt64>.self), as: SIMD2<UInt64>.self)
        }
    }

    func executeFloatSpecial(_ code: FloatSpecial, _ form: VectorForm, _ o: VectorOperands) throws(Trap) {
        let work = s.floatingPoint.firstCopy
        let other = s.floatingPoint.secondCopy
        var raised: UInt32 = 0
        func one(_ instruction: chostfloat_instruction) {
            host(UInt16(instruction.rawValue), work, other, other, raised: &raised)
        }
        work.storeBytes(of: o.a.loadUnaligned(as: SIMD2<UInt64>.self), as: SIMD2<UInt64>.self)
        switch code {
        case .compare:
            host(UInt16(form.immediate), work, o.b, o.b, raised: &raised)
            try settle(raised: raised)
            setArithmetic(work.load(as: UInt64.self) >> 8 & (Flag.cf | Flag.pf | Flag.zf))
        case .toMMX, .truncateToMMX, .fromMMX:
            // The upper halves are 0, which raises nothing.
            other.storeBytes(of: SIMD2(o.b.loadUnaligned(as: UInt64.self), 0), as: SIMD2<UInt64>.self)
            one(code == .toMMX ? CHOSTFLOAT_cvtps2dq : code == .fromMMX ? CHOSTFLOAT_cvtdq2ps : CHOSTFLOAT_cvttps2dq)
            try settle(raised: raised)
            o.set(0, work.load(as: UInt64.self))
        case .doubleToMMX, .truncateDoubleToMMX:
            other.storeBytes(of: o.b.loadUnaligned(as: SIMD2<UInt64>.self), as: SIMD2<UInt64>.self)
            one(code == .doubleToMMX ? CHOSTFLOAT_cvtpd2dq : CHOSTFLOAT_cvttpd2dq)
            try settle(raised: raised)
            o.set(0, work.load(as: UInt64.self))
        case .doubleFromMMX:
            other.storeBytes(of: SIMD2(o.b.loadUnaligned(as: UInt64.self), 0), as: SIMD2<UInt64>.self)
            one(CHOSTFLOAT_cvtdq2pd)
            o.d.storeBytes(of: work.load(as: SIMD2<UInt64>.self), as: SIMD2<UInt64>.self)
        case .dot32, .dot64:
            try dotProduct(code == .dot32, o)
            for i in 0..<(o.bytes / 8) { o.set(i, VectorOperands.load(work, i, UInt64.self)) }
        case .widen:
            host(UInt16(form.immediate), work, o.b, o.b, raised: &raised)
            host(UInt16(form.immediate), work + 16, o.b + 8, o.b + 8, raised: &raised)
            try settle(raised: raised)
            o.d.storeBytes(of: work.load(as: SIMD4<UInt64>.self), as: SIMD4<UInt64>.self)
        case .narrow:
            host(UInt16(form.immediate), work, o.b, o.b, raised: &raised)
            host(UInt16(form.immediate), work + 16, o.b + 16, o.b + 16, raised: &raised)
            try settle(raised: raised)
            o.d.storeBytes(of: SIMD2(work.load(as: UInt64.self), (work + 16).load(as: UInt64.self)), as: SIMD2<UInt64>.self)
        }
    }

    /// Products of 16 bytes each into `firstCopy`. Source: Intel SDM Vol. 2A, DPPS: products, then sums of pairs, then
    /// the sum of these.
    private func dotProduct(_ single: Bool, _ o: VectorOperands) throws(Trap) {
        let work = s.floatingPoint.firstCopy
        let other = s.floatingPoint.secondCopy
        // What isn't chosen counts as +0, and raises nothing.
        func fill(_ place: UnsafeMutableRawPointer, _ source: UnsafeMutableRawPointer, _ bits: UInt8) {
            for i in 0..<(o.bytes / 4) {
                let element = single ? i & 3 : i >> 1 & 1
                let value = bits >> UInt8(element) & 1 != 0 ? VectorOperands.load(source, i, UInt32.self) : 0
                place.storeBytes(of: value, toByteOffset: 4 * i, as: UInt32.self)
            }
        }
        fill(work, o.a, o.immediate >> 4)
        fill(other, o.b, o.immediate >> 4)
        func step(_ instruction: chostfloat_instruction) throws(Trap) {
            var raised: UInt32 = 0
            for offset in stride(from: 0, to: o.bytes, by: 16) {
                host(UInt16(instruction.rawValue), work + offset, other + offset, other + offset, raised: &raised)
            }
            try settle(raised: raised)
            other.copyMemory(from: work, byteCount: 32)
        }
        try step(single ? CHOSTFLOAT_mulps : CHOSTFLOAT_mulpd)
        try step(single ? CHOSTFLOAT_haddps : CHOSTFLOAT_haddpd)
        if single { try step(CHOSTFLOAT_haddps) }
        fill(work, other, o.immediate)
    }
}

/// What is to be known of the host's instructions besides what they do.
enum HostFloat {
    private enum Lanes {
        case none, single, double, singles, doubles, twoSingles
    }

    private static func lanes(_ instruction: UInt32) -> Lanes {
        switch instruction {
        case ..<CHOSTFLOAT_minps.rawValue:
            switch instruction & 3 {
            case 0: .singles
            case 1: .doubles
            case 2: .single
            default: .double
            }
        case CHOSTFLOAT_haddps.rawValue, CHOSTFLOAT_hsubps.rawValue, CHOSTFLOAT_addsubps.rawValue: .singles
        case CHOSTFLOAT_haddpd.rawValue, CHOSTFLOAT_hsubpd.rawValue, CHOSTFLOAT_addsubpd.rawValue: .doubles
        case CHOSTFLOAT_cvtpd2ps.rawValue: .twoSingles
        case CHOSTFLOAT_cvtsd2ss.rawValue: .single
        default: .none
        }
    }

    private static func isTiny(_ single: UInt32) -> Bool { single & 0x7F80_0000 == 0 && single & 0x7F_FFFF != 0 }
    private static func isTiny(_ double: UInt64) -> Bool { double & 0x7FF0 << 48 == 0 && double & 0xF_FFFF_FFFF_FFFF != 0 }

    static func hasTinyResult(_ instruction: UInt32, _ result: UnsafeMutableRawPointer) -> Bool {
        func single(_ i: Int) -> Bool { isTiny(VectorOperands.load(result, i, UInt32.self)) }
        func double(_ i: Int) -> Bool { isTiny(VectorOperands.load(result, i, UInt64.self)) }
        return switch lanes(instruction) {
        case .none: false
        case .single: single(0)
        case .double: double(0)
        case .singles: (0..<4).contains { single($0) }
        case .doubles: double(0) || double(1)
        case .twoSingles: single(0) || single(1)
        }
    }
}
