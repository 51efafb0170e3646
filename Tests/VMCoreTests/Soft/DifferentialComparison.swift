import DifferentialGuest
import VMCore

/// Where two records of one case differ, in words.
enum DifferentialComparison {
    /// IOPL and IF aren't user mode's; RF is set by faults in some ways of their delivery and not in others.
    private static let flags: UInt64 = ~0x1_3200

    /// MXCSR says that an underflow was raised and not masked.
    private static func unmasksUnderflow(_ record: DifferentialRecord) -> Bool { record[24, UInt32.self] & 0x810 == 0x10 }

    /// `hidesProtection`: the KVM reports #GP of user mode as #UD.
    static func differences(_ one: DifferentialCase, _ processor: DifferentialRecord, _ soft: DifferentialRecord,
                            hidesProtection: Bool) -> [String] {
        var a = processor, b = soft
        if hidesProtection, a.vector == 6, b.vector == 13 {
            a[Int(CASE_CODE), UInt64.self] = 13
            a[Int(CASE_ERROR), UInt64.self] = b[Int(CASE_ERROR), UInt64.self]
        }
        for range in one.ignored + [6..<24, 28..<32] {
            for i in range where i < a.bytes.count {
                a.bytes[i] = 0
                b.bytes[i] = 0
            }
        }
        for offset in [Int(CASE_FLAGS), Int(CASE_FAULT_FLAGS)] {
            a[offset, UInt64.self] &= flags
            b[offset, UInt64.self] &= flags
        }
        if a.vector == 19, b.vector == 19, unmasksUnderflow(a), unmasksUnderflow(b) {
            // Whether a tiny result is inexact as well depends on a rounding that only the processor knows: see
            // docs/soft-engine-instructions.md.
            a[24, UInt32.self] |= 0x20
            b[24, UInt32.self] |= 0x20
        }
        if a.vector != 14 {
            a[Int(CASE_CR2), UInt64.self] = 0
            b[Int(CASE_CR2), UInt64.self] = 0
        }
        if isGather(one), a.vector == b.vector, a.vector != .max { keepSigns(ofMaskIn: one, &a, &b) }
        // Intel's processors have gone over to MMX before the store faults, AMD's have not.
        if one.name == "MOVNTQ", a.vector == 14, b.vector == 14 { take(0..<160, from: b, to: &a) }
        guard a != b else { return [] }
        var found: [String] = []
        func look(_ name: String, _ offset: Int, _ count: Int) {
            let x = a.bytes[offset..<(offset + count)], y = b.bytes[offset..<(offset + count)]
            if x != y { found.append("\(name) \(text(x)) and \(text(y))") }
        }
        look("FCW", 0, 2)
        look("FSW", 2, 2)
        look("FTW", 4, 1)
        look("MXCSR", 24, 4)
        for i in 0..<8 { look("ST\(i)", 32 + 16 * i, 10) }
        for i in 0..<16 { look("XMM\(i)", 160 + 16 * i, 16) }
        for i in 0..<16 { look("YMM\(i)-high", Int(CASE_YMM) + 16 * i, 16) }
        let names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"] + (8..<16).map { "R\($0)" }
        for (i, name) in names.enumerated() { look(name, Int(CASE_REGISTERS) + 8 * i, 8) }
        look("RFLAGS", Int(CASE_FLAGS), 4)
        look("vector", Int(CASE_CODE), 8)
        look("error code", Int(CASE_ERROR), 8)
        look("fault at", Int(CASE_RIP), 8)
        look("RFLAGS of the fault", Int(CASE_FAULT_FLAGS), 4)
        look("CR2", Int(CASE_CR2), 8)
        for offset in stride(from: 0, to: Int(CASE_DATA_BYTES), by: 8) { look("data+\(offset)", Int(CASE_DATA) + offset, 8) }
        return found.isEmpty ? ["other bytes"] : found
    }

    private static func take(_ range: Range<Int>, from other: DifferentialRecord, to record: inout DifferentialRecord) {
        for i in range where !(24..<32).contains(i) { record.bytes[i] = other.bytes[i] }
    }

    private static func isGather(_ one: DifferentialCase) -> Bool { one.name.hasPrefix("VGATHER") || one.name.hasPrefix("VPGATHER") }

    /// What is left of a gather's mask after a fault is in the elements' signs: Intel's processors have made each of them all ones
    /// or zeros by then. Source: Intel SDM Vol. 2C, VGATHERDPS.
    private static func keepSigns(ofMaskIn one: DifferentialCase, _ a: inout DifferentialRecord, _ b: inout DifferentialRecord) {
        guard let vex = one.code.firstIndex(of: 0xC4), vex + 2 < one.code.count else { return }
        let mask = Int(~one.code[vex + 2] >> 3 & 15), bytes = one.code[vex + 2] & 0x80 != 0 ? 8 : 4
        // The upper half of a register whose lower one holds all elements.
        if one.code[vex + 2] & 4 == 0 { take(Int(CASE_YMM) + 16 * mask..<Int(CASE_YMM) + 16 * mask + 16, from: b, to: &a) }
        for start in [160 + 16 * mask, Int(CASE_YMM) + 16 * mask] {
            for i in start..<(start + 16) {
                let isSign = (i - start) % bytes == bytes - 1
                a.bytes[i] = isSign ? a.bytes[i] & 0x80 : 0
                b.bytes[i] = isSign ? b.bytes[i] & 0x80 : 0
            }
        }
    }

    /// Little-endian bytes as a number.
    private static func text(_ bytes: ArraySlice<UInt8>) -> String {
        "0x" + bytes.reversed().map { let h = String($0, radix: 16); return h.count < 2 ? "0" + h : h }.joined()
    }
}
