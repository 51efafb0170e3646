import CHostFloat
import CZydis

/// Fused multiplication, and AVX's moves that touch memory by element.
///
/// Source: Intel SDM Vol. 2C.
extension InstructionDecoder {
    /// The instructions of FMA by host instruction: 132, 213, 231, which say what multiplies what.
    private static let fusedCodes: [UInt32: (host: UInt16, order: UInt8)] = {
        let rows: [(ZydisMnemonic, ZydisMnemonic, ZydisMnemonic, chostfloat_instruction)] = [
            (ZYDIS_MNEMONIC_VFMADD132PS, ZYDIS_MNEMONIC_VFMADD213PS, ZYDIS_MNEMONIC_VFMADD231PS, CHOSTFLOAT_vfmadd231ps),
            (ZYDIS_MNEMONIC_VFMADD132PD, ZYDIS_MNEMONIC_VFMADD213PD, ZYDIS_MNEMONIC_VFMADD231PD, CHOSTFLOAT_vfmadd231pd),
            (ZYDIS_MNEMONIC_VFMADD132SS, ZYDIS_MNEMONIC_VFMADD213SS, ZYDIS_MNEMONIC_VFMADD231SS, CHOSTFLOAT_vfmadd231ss),
            (ZYDIS_MNEMONIC_VFMADD132SD, ZYDIS_MNEMONIC_VFMADD213SD, ZYDIS_MNEMONIC_VFMADD231SD, CHOSTFLOAT_vfmadd231sd),
            (ZYDIS_MNEMONIC_VFMSUB132PS, ZYDIS_MNEMONIC_VFMSUB213PS, ZYDIS_MNEMONIC_VFMSUB231PS, CHOSTFLOAT_vfmsub231ps),
            (ZYDIS_MNEMONIC_VFMSUB132PD, ZYDIS_MNEMONIC_VFMSUB213PD, ZYDIS_MNEMONIC_VFMSUB231PD, CHOSTFLOAT_vfmsub231pd),
            (ZYDIS_MNEMONIC_VFMSUB132SS, ZYDIS_MNEMONIC_VFMSUB213SS, ZYDIS_MNEMONIC_VFMSUB231SS, CHOSTFLOAT_vfmsub231ss),
            (ZYDIS_MNEMONIC_VFMSUB132SD, ZYDIS_MNEMONIC_VFMSUB213SD, ZYDIS_MNEMONIC_VFMSUB231SD, CHOSTFLOAT_vfmsub231sd),
            (ZYDIS_MNEMONIC_VFNMADD132PS, ZYDIS_MNEMONIC_VFNMADD213PS, ZYDIS_MNEMONIC_VFNMADD231PS, CHOSTFLOAT_vfnmadd231ps),
            (ZYDIS_MNEMONIC_VFNMADD132PD, ZYDIS_MNEMONIC_VFNMADD213PD, ZYDIS_MNEMONIC_VFNMADD231PD, CHOSTFLOAT_vfnmadd231pd),
            (ZYDIS_MNEMONIC_VFNMADD132SS, ZYDIS_MNEMONIC_VFNMADD213SS, ZYDIS_MNEMONIC_VFNMADD231SS, CHOSTFLOAT_vfnmadd231ss),
            (ZYDIS_MNEMONIC_VFNMADD132SD, ZYDIS_MNEMONIC_VFNMADD213SD, ZYDIS_MNEMONIC_VFNMADD231SD, CHOSTFLOAT_vfnmadd231sd),
            (ZYDIS_MNEMONIC_VFNMSUB132PS, ZYDIS_MNEMONIC_VFNMSUB213PS, ZYDIS_MNEMONIC_VFNMSUB231PS, CHOSTFLOAT_vfnmsub231ps),
            (ZYDIS_MNEMONIC_VFNMSUB132PD, ZYDIS_MNEMONIC_VFNMSUB213PD, ZYDIS_MNEMONIC_VFNMSUB231PD, CHOSTFLOAT_vfnmsub231pd),
            (ZYDIS_MNEMONIC_VFNMSUB132SS, ZYDIS_MNEMONIC_VFNMSUB213SS, ZYDIS_MNEMONIC_VFNMSUB231SS, CHOSTFLOAT_vfnmsub231ss),
            (ZYDIS_MNEMONIC_VFNMSUB132SD, ZYDIS_MNEMONIC_VFNMSUB213SD, ZYDIS_MNEMONIC_VFNMSUB231SD, CHOSTFLOAT_vfnmsub231sd),
            (ZYDIS_MNEMONIC_VFMADDSUB132PS, ZYDIS_MNEMONIC_VFMADDSUB213PS, ZYDIS_MNEMONIC_VFMADDSUB231PS, CHOSTFLOAT_vfmaddsub231ps),
            (ZYDIS_MNEMONIC_VFMADDSUB132PD, ZYDIS_MNEMONIC_VFMADDSUB213PD, ZYDIS_MNEMONIC_VFMADDSUB231PD, CHOSTFLOAT_vfmaddsub231pd),
            (ZYDIS_MNEMONIC_VFMSUBADD132PS, ZYDIS_MNEMONIC_VFMSUBADD213PS, ZYDIS_MNEMONIC_VFMSUBADD231PS, CHOSTFLOAT_vfmsubadd231ps),
            (ZYDIS_MNEMONIC_VFMSUBADD132PD, ZYDIS_MNEMONIC_VFMSUBADD213PD, ZYDIS_MNEMONIC_VFMSUBADD231PD, CHOSTFLOAT_vfmsubadd231pd),
        ]
        var codes: [UInt32: (UInt16, UInt8)] = [:]
        for (a, b, c, host) in rows {
            for (i, mnemonic) in [a, b, c].enumerated() { codes[mnemonic.rawValue] = (UInt16(host.rawValue), UInt8(i)) }
        }
        return codes
    }()

    mutating func fused() -> Bool {
        guard let (host, order) = Self.fusedCodes[instruction.mnemonic.rawValue] else { return false }
        vector(.vectorFused, host, immediate: order)
        return true
    }

    /// VMASKMOV and the gathers.
    mutating func masked() -> Bool {
        var data = 4, index = 4
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_VMASKMOVPS, ZYDIS_MNEMONIC_VPMASKMOVD: maskedMove(4)
        case ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVQ: maskedMove(8)
        case ZYDIS_MNEMONIC_VGATHERDPS, ZYDIS_MNEMONIC_VPGATHERDD: gather(data, index)
        case ZYDIS_MNEMONIC_VGATHERDPD, ZYDIS_MNEMONIC_VPGATHERDQ:
            data = 8
            gather(data, index)
        case ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VPGATHERQD:
            index = 8
            gather(data, index)
        case ZYDIS_MNEMONIC_VGATHERQPD, ZYDIS_MNEMONIC_VPGATHERQQ:
            (data, index) = (8, 8)
            gather(data, index)
        default: return false
        }
        return true
    }

    /// `a` is the vector that is moved, `b` the mask.
    private mutating func maskedMove(_ element: Int) {
        let stores = isMemory(0)
        var op = make(.cold)
        op.cold = .vectorMasked
        var (form, _) = vectorForm(UInt16(element), into: &op)
        let vector = Self.vectorRegister(operands[stores ? 2 : 0].reg.value)
        op.a = vector?.number ?? 0
        op.b = Self.vectorRegister(operands[1].reg.value)?.number ?? 0
        form.bytes = vector?.bytes ?? 16
        place(stores ? 0 : 2, in: &op, writes: stores)
        op.form.bits |= stores ? MicroOp.Form.memoryA : MicroOp.Form.memoryB
        op.imm = form.bits
        emit(op)
    }

    /// `a` is the destination, `b` the mask, `first` the indices; the sizes of elements are in `code`.
    private mutating func gather(_ data: Int, _ index: Int) {
        var op = make(.cold)
        op.cold = .vectorGather
        var (form, _) = vectorForm(UInt16(data << 8 | index), into: &op)
        let target = Self.vectorRegister(operands[0].reg.value)
        let indices = Self.vectorRegister(operands[1].mem.index)
        op.a = target?.number ?? 0
        op.b = Self.vectorRegister(operands[2].reg.value)?.number ?? 0
        form.first = indices?.number ?? 0
        form.bytes = target?.bytes ?? 16
        // Elements: as many as the narrower of the two vectors holds.
        form.immediate = UInt8(min((target?.bytes ?? 16) / data, (indices?.bytes ?? 16) / index))
        // All three registers differ. Source: Intel SDM Vol. 2C, VGATHERDPS.
        if op.a == op.b || op.a == form.first || op.b == form.first { return cold(.undefined, ends: true) }
        place(1, in: &op)
        op.form.bits |= MicroOp.Form.memoryB
        op.imm = form.bits
        emit(op)
    }
}

extension Core {
    func executeFused(_ form: VectorForm, _ o: VectorOperands) throws(Trap) {
        let work = s.floatingPoint.firstCopy
        var raised: UInt32 = 0
        for offset in stride(from: 0, to: o.bytes, by: 16) {
            let (x, y, z) = switch form.immediate {
            case 0: (o.d, o.b, o.a)
            case 1: (o.a, o.d, o.b)
            default: (o.a, o.b, o.d)
            }
            let place = work + offset
            place.storeBytes(of: (z + offset).loadUnaligned(as: SIMD2<UInt64>.self), as: SIMD2<UInt64>.self)
            host(form.code, place, x + offset, y + offset, raised: &raised)
        }
        try settle(raised: raised)
        switch HostFloat.scalarBytes(UInt32(form.code)) {
        case 4: o.d.storeBytes(of: work.load(as: UInt32.self), as: UInt32.self)
        case 8: o.d.storeBytes(of: work.load(as: UInt64.self), as: UInt64.self)
        default:
            for i in 0..<(o.bytes / 8) { o.set(i, VectorOperands.load(work, i, UInt64.self)) }
        }
    }

    func moveMasked(_ op: Op) throws(Trap) {
        let form = VectorForm(bits: op.pointee.imm)
        try checkVector(form)
        let stores = op.pointee.form.has(MicroOp.Form.memoryA)
        let size = Int(form.code)
        let vector = s.floatingPoint.vector(op.pointee.a), mask = s.floatingPoint.vector(op.pointee.b)
        let work = s.floatingPoint.operand
        work.storeBytes(of: SIMD4<UInt64>(), as: SIMD4<UInt64>.self)
        let address = try operandAddress(op, size: 1, writes: stores)
        func isChosen(_ offset: Int) -> Bool { (mask + offset + size - 1).load(as: UInt8.self) & 0x80 != 0 }
        func place(_ offset: Int) -> UInt64 { (address &+ UInt64(offset)) & s.linearMask }
        for offset in stride(from: 0, to: form.bytes, by: size) where isChosen(offset) {
            if stores {
                try prepareStore(place(offset), size)
            } else {
                try loadBytes(place(offset), size, to: work + offset)
            }
        }
        if stores {
            for offset in stride(from: 0, to: form.bytes, by: size) where isChosen(offset) {
                try storeBytes(place(offset), size, from: vector + offset)
            }
        } else {
            // Beyond an operand of 16 bytes the register is cleared.
            vector.copyMemory(from: work, byteCount: 32)
        }
    }

    /// Elements are gathered one by one; those that were stay when a later one faults.
    func gather(_ op: Op) throws(Trap) {
        let form = VectorForm(bits: op.pointee.imm)
        try checkVector(form)
        let file = s.floatingPoint
        let data = Int(form.code >> 8), size = Int(form.code & 0xFF)
        let target = file.vector(op.pointee.a), mask = file.vector(op.pointee.b), indices = file.vector(form.first)
        for i in 0..<Int(form.immediate) {
            let element = mask + i * data
            if (element + data - 1).load(as: UInt8.self) & 0x80 != 0 {
                let index = size == 4 ? Int64(VectorOperands.load(indices, i, Int32.self))
                    : VectorOperands.load(indices, i, Int64.self)
                let away = UInt64(bitPattern: index) << UInt64(op.pointee.scale & 3)
                let address = try operandAddress(op, size: UInt64(data), writes: false, plus: away)
                try loadBytes(address, data, to: file.operand)
                (target + i * data).copyMemory(from: file.operand, byteCount: data)
            }
            memsetZero(element, data)
        }
        memsetZero(mask, 32)
        let bytes = Int(form.immediate) * data
        memsetZero(target + bytes, 32 - bytes)
    }

    private func memsetZero(_ place: UnsafeMutableRawPointer, _ count: Int) {
        place.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    }
}

extension HostFloat {
    /// Bytes that a fused instruction changes, where it is a scalar one.
    static func scalarBytes(_ instruction: UInt32) -> Int? {
        guard (CHOSTFLOAT_vfmadd231ps.rawValue..<CHOSTFLOAT_vfmaddsub231ps.rawValue).contains(instruction) else { return nil }
        return switch (instruction - CHOSTFLOAT_vfmadd231ps.rawValue) & 3 {
        case 2: 4
        case 3: 8
        default: nil
        }
    }
}
