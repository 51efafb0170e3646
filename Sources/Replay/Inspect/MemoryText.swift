import Foundation
import VMCore

/// How memory is shown.
public enum MemoryFormat: String, CaseIterable, Sendable {
    case hex, words, strings, instructions
}

/// Memory as a person reads it.
struct MemoryText {
    var symbols: SymbolTable
    var disassembler: Disassembler
    /// Bytes of an address in the guest's mode.
    var wordBytes: Int

    init(_ core: CoreRegisters, symbols: SymbolTable) {
        self.symbols = symbols
        disassembler = Disassembler(core)
        wordBytes = core.control.efer >> 10 & 1 == 1 ? 8 : core.control.cr0 & 1 == 1 ? 4 : 2
    }

    func lines(_ bytes: [UInt8], at address: UInt64, as format: MemoryFormat) -> [String] {
        switch format {
        case .hex: hexLines(bytes, at: address)
        case .words: wordLines(bytes, at: address)
        case .strings: stringLines(bytes, at: address)
        case .instructions: disassembler.all(bytes, at: address).map { line($0) }
        }
    }

    private func place(_ address: UInt64) -> String { "0x" + RegisterText.hex(address, digits: 2 * wordBytes) }

    private func hexLines(_ bytes: [UInt8], at address: UInt64) -> [String] {
        stride(from: 0, to: bytes.count, by: 16).map { start in
            let row = bytes[start..<min(start + 16, bytes.count)]
            let hex = stride(from: row.startIndex, to: row.endIndex, by: 8).map { half in
                row[half..<min(half + 8, row.endIndex)].map { RegisterText.hex(UInt64($0), digits: 2) }.joined(
                    separator: " ")
            }.joined(separator: "  ")
            let text = String(decoding: row.map { (0x20...0x7E).contains($0) ? $0 : UInt8(ascii: ".") }, as: UTF8.self)
            return
                place(address &+ UInt64(start)) + "  " + hex.padding(toLength: 48, withPad: " ", startingAt: 0)
                    + "  |\(text)|"
        }
    }

    private func wordLines(_ bytes: [UInt8], at address: UInt64) -> [String] {
        stride(from: 0, to: bytes.count - wordBytes + 1, by: wordBytes).map { start in
            let value = bytes[start..<(start + wordBytes)].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
            let name = symbols.name(of: value).map { "  <\($0)>" } ?? ""
            return "\(place(address &+ UInt64(start)))  \(RegisterText.hex(value, digits: 2 * wordBytes))\(name)"
        }
    }

    /// Runs of four printable characters and more, as `strings` finds them.
    private func stringLines(_ bytes: [UInt8], at address: UInt64) -> [String] {
        var lines: [String] = []
        var start = 0
        for end in 0...bytes.count {
            if end < bytes.count, (0x20...0x7E).contains(bytes[end]) || bytes[end] == 0x09 { continue }
            if end - start >= 4 {
                lines.append(
                    "\(place(address &+ UInt64(start)))  \(String(decoding: bytes[start..<end], as: UTF8.self))")
            }
            start = end + 1
        }
        return lines
    }

    func line(_ instruction: Disassembly) -> String {
        let bytes = instruction.bytes.map { RegisterText.hex(UInt64($0), digits: 2) }.joined(separator: " ")
        let name = symbols.name(of: instruction.address).map { "<\($0)> " } ?? ""
        return "\(place(instruction.address))  \(bytes.padding(toLength: 30, withPad: " ", startingAt: 0)) \(name)"
            + instruction.text(symbols)
    }
}
