/// PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM. Source: Intel SDM Vol. 2B, 4.1.
enum VectorText: UInt16 {
    case explicitIndex, explicitMask, implicitIndex, implicitMask
}

extension Core {
    func executeText(_ code: VectorText, _ form: VectorForm, _ o: VectorOperands) {
        let words = o.immediate & 1 != 0
        let signed = o.immediate & 2 != 0
        let count = words ? 8 : 16

        func element(_ place: UnsafeMutableRawPointer, _ i: Int) -> Int {
            switch (words, signed) {
            case (false, false): Int(VectorOperands.load(place, i, UInt8.self))
            case (false, true): Int(VectorOperands.load(place, i, Int8.self))
            case (true, false): Int(VectorOperands.load(place, i, UInt16.self))
            case (true, true): Int(VectorOperands.load(place, i, Int16.self))
            }
        }
        /// Elements before the end: up to a null, or as many as a register says.
        func length(_ place: UnsafeMutableRawPointer, _ register: Int) -> Int {
            if code == .implicitIndex || code == .implicitMask {
                return (0..<count).first { element(place, $0) == 0 } ?? count
            }
            let value = form.isWide ? Int64(bitPattern: gpr(register)) : Int64(Int32(truncatingIfNeeded: gpr(register)))
            return Int(min(value.magnitude, UInt64(count)))
        }
        let firstLength = length(o.a, GPR.rax), secondLength = length(o.b, GPR.rdx)

        var bits: UInt32 = 0
        for j in 0..<count {
            let holds: Bool
            switch o.immediate >> 2 & 3 {
            case 0:  // equal to any of the first
                holds = j < secondLength && (0..<firstLength).contains { element(o.a, $0) == element(o.b, j) }
            case 1:  // in any range that two elements of the first bound
                holds = j < secondLength && stride(from: 0, to: firstLength - 1, by: 2).contains {
                    element(o.a, $0) <= element(o.b, j) && element(o.b, j) <= element(o.a, $0 + 1)
                }
            case 2:  // equal in place, also beyond both ends
                holds = j < firstLength && j < secondLength ? element(o.a, j) == element(o.b, j)
                    : j >= firstLength && j >= secondLength
            default:  // the first begins here
                holds = (0..<min(firstLength, count - j)).allSatisfy {
                    j + $0 < secondLength && element(o.a, $0) == element(o.b, j + $0)
                }
            }
            if holds { bits |= 1 << UInt32(j) }
        }
        let all: UInt32 = words ? 0xFF : 0xFFFF
        switch o.immediate >> 4 & 3 {
        case 1: bits = ~bits & all
        case 3: bits ^= (1 << UInt32(secondLength)) - 1
        default: break
        }

        if code == .explicitIndex || code == .implicitIndex {
            let index = bits == 0 ? count
                : o.immediate & 0x40 != 0 ? 31 - bits.leadingZeroBitCount : bits.trailingZeroBitCount
            setReg(Slot.gpr(GPR.rcx), UInt32(index))
        } else {
            let target = s.floatingPoint.vector(0)
            if o.immediate & 0x40 == 0 {
                target.storeBytes(of: SIMD2(UInt64(bits), 0), as: SIMD2<UInt64>.self)
            } else {
                for i in 0..<count {
                    let value: UInt16 = bits >> UInt32(i) & 1 != 0 ? .max : 0
                    if words {
                        target.storeBytes(of: value, toByteOffset: 2 * i, as: UInt16.self)
                    } else {
                        target.storeBytes(of: UInt8(truncatingIfNeeded: value), toByteOffset: i, as: UInt8.self)
                    }
                }
            }
            if form.isVEX { (target + 16).storeBytes(of: SIMD2<UInt64>(), as: SIMD2<UInt64>.self) }
        }
        setArithmetic((bits != 0 ? Flag.cf : 0) | (secondLength < count ? Flag.zf : 0)
            | (firstLength < count ? Flag.sf : 0) | (bits & 1 != 0 ? Flag.of : 0))
    }
}
