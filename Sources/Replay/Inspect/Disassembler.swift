import CZydis
import Foundation
import VMCore

/// An instruction as text.
public struct Disassembly: Equatable, Sendable {
    /// Linear address.
    public var address: UInt64
    public var bytes: [UInt8]
    public var text: String
    /// Where it branches to, or the memory that it names by an absolute address; nil where neither can be told.
    public var target: UInt64?
    public var isCall: Bool
}

/// Turns code into text, in Intel's syntax.
public struct Disassembler {
    private let mode: ZydisMachineMode

    /// Longest instruction. Source: Intel SDM Vol. 2A, 2.3.11.
    static let longest = 15

    /// For the code that a processor in this state executes.
    public init(_ core: CoreRegisters) {
        let isLong = core.control.efer >> 10 & 1 == 1
        if isLong, core.cs.attributes >> 9 & 1 == 1 {
            mode = ZYDIS_MACHINE_MODE_LONG_64
        } else if core.control.cr0 & 1 == 0 {
            mode = ZYDIS_MACHINE_MODE_REAL_16
        } else {
            mode = core.cs.attributes >> 10 & 1 == 1 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16
        }
    }

    /// The instruction that `bytes` begins with; nil where it begins with none.
    public func one(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> Disassembly? {
        var decoded = ZydisDisassembledInstruction()
        let status = bytes.withUnsafeBytes {
            ZydisDisassembleIntel(mode, address, $0.baseAddress, ZyanUSize($0.count), &decoded)
        }
        guard status & 0x8000_0000 == 0, decoded.info.length > 0 else { return nil }
        let text = withUnsafeBytes(of: &decoded.text) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        return Disassembly(
            address: address, bytes: Array(bytes.prefix(Int(decoded.info.length))),
            text: Self.withoutLeadingZeros(text), target: Self.target(&decoded),
            isCall: decoded.info.meta.category == ZYDIS_CATEGORY_CALL)
    }

    /// Zydis pads addresses to the width of the mode.
    private static func withoutLeadingZeros(_ text: String) -> String {
        var result = text
        while let range = result.range(of: "0x0"), let next = result[range.upperBound...].first, next.isHexDigit {
            result.replaceSubrange(range, with: "0x")
        }
        return result
    }

    private static func target(_ decoded: inout ZydisDisassembledInstruction) -> UInt64? {
        let count = Int(decoded.info.operand_count_visible)
        let (info, address) = (decoded.info, decoded.runtime_address)
        return withUnsafeBytes(of: &decoded.operands) { raw in
            let operands = raw.bindMemory(to: ZydisDecodedOperand.self)
            var result: UInt64 = 0
            return withUnsafePointer(to: info) { info in
                for i in 0..<count
                where ZydisCalcAbsoluteAddress(info, operands.baseAddress! + i, address, &result) & 0x8000_0000 == 0 {
                    return result
                }
                return nil
            }
        }
    }

    /// All instructions of `bytes`; a byte that begins none stands alone.
    public func all(_ bytes: [UInt8], at address: UInt64) -> [Disassembly] {
        var list: [Disassembly] = []
        var offset = 0
        while offset < bytes.count {
            let here = address &+ UInt64(offset)
            let next =
                one(bytes[offset...], at: here)
                ?? Disassembly(address: here, bytes: [bytes[offset]], text: "(bad)", target: nil, isCall: false)
            list.append(next)
            offset += next.bytes.count
        }
        return list
    }

    /// The last `count` instructions that end at the end of `bytes`. Code can't be decoded backwards: of the places
    /// where one could begin, the earliest counts from which decoding comes to the end exactly.
    public func before(_ bytes: [UInt8], endingAt end: UInt64, count: Int) -> [Disassembly] {
        for skip in 0..<bytes.count {
            let rest = Array(bytes[skip...])
            let list = all(rest, at: end &- UInt64(rest.count))
            if !list.contains(where: { $0.text == "(bad)" }) { return Array(list.suffix(count)) }
        }
        return []
    }

    /// Whether the bytes end with a call: what stands before a return address.
    func endsWithCall(_ bytes: [UInt8], at end: UInt64) -> Bool {
        (2...7).contains { length in
            guard length <= bytes.count, let found = one(bytes.suffix(length), at: end &- UInt64(length)) else {
                return false
            }
            return found.isCall && found.bytes.count == length
        }
    }
}

extension Disassembly {
    /// The text, with the symbol of its target.
    func text(_ symbols: SymbolTable) -> String {
        text + (target.flatMap { symbols.name(of: $0) }.map { "  <\($0)>" } ?? "")
    }
}
