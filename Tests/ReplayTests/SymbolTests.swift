import Foundation
import Replay
import Testing

@Suite struct SymbolTests {
    @Test func addressesAreNamed() {
        let table = SymbolTable([
            Symbol(name: "outer", address: 0x1000, size: 0x100), Symbol(name: "inner", address: 0x1010, size: 4),
            Symbol(name: "label", address: 0x2000), Symbol(name: "alias", address: 0x1000),
        ])
        #expect(table.name(of: 0x1000) == "outer")
        #expect(table.name(of: 0x1012) == "inner+0x2")
        #expect(table.name(of: 0x1020) == "outer+0x20")
        #expect(table.name(of: 0x1100) == nil)
        #expect(table.name(of: 0x2345) == "label+0x345")
        #expect(table.name(of: 0xFFF) == nil)
        #expect(table.address("inner+0x3") == 0x1013)
        #expect(table.address("label-16") == 0x1FF0)
        #expect(table.address("0x42") == 0x42)
        #expect(table.address("nobody") == nil && table.address("inner+x") == nil)
    }

    @Test func systemMapsAreRead() throws {
        let text = "ffffffff81000000 T _text\nffffffff81000010 t local\n                 U elsewhere\n"
        let table = try SymbolTable(file: Array(text.utf8))
        #expect(table["_text"]?.address == 0xFFFF_FFFF_8100_0000)
        #expect(table.name(of: 0xFFFF_FFFF_8100_0014) == "local+0x4")
        #expect(throws: SymbolError.self) { try SymbolTable(file: Array("no symbols here\n".utf8)) }
        #expect(throws: SymbolError.self) { try SymbolTable(file: []) }
    }

    /// A little ELF file with the symbols `start` (a function of 16 bytes), `data` (an object), and one undefined.
    private func elf(is64: Bool) -> [UInt8] {
        func little(_ value: UInt64, _ bytes: Int) -> [UInt8] {
            (0..<bytes).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        }
        let word = is64 ? 8 : 4
        let names = Array("\0start\0data\0gone\0".utf8)
        func symbol(_ name: UInt64, _ info: UInt8, _ section: UInt64, _ value: UInt64, _ size: UInt64) -> [UInt8] {
            is64
                ? little(name, 4) + [info, 0] + little(section, 2) + little(value, 8) + little(size, 8)
                : little(name, 4) + little(value, 4) + little(size, 4) + [info, 0] + little(section, 2)
        }
        let symbols =
            symbol(0, 0, 0, 0, 0) + symbol(1, 0x12, 1, 0x1000, 16) + symbol(7, 0x11, 1, 0x2000, 4)
            + symbol(12, 0x12, 0, 0, 0)
        let header = is64 ? 64 : 52
        let sectionBytes = is64 ? 64 : 40
        func section(_ type: UInt64, _ offset: Int, _ size: Int, _ link: UInt64) -> [UInt8] {
            little(0, 4) + little(type, 4) + little(0, word) + little(0, word) + little(UInt64(offset), word)
                + little(UInt64(size), word) + little(link, 4) + little(0, 4) + little(0, word) + little(0, word)
        }
        let symbolsAt = header + names.count
        let sectionsAt = symbolsAt + symbols.count
        let ident: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, is64 ? 2 : 1, 1, 1] + Array(repeating: 0, count: 9)
        let machine: UInt64 = is64 ? 62 : 3
        let top: [UInt8] =
            ident + little(2, 2) + little(machine, 2) + little(1, 4) + little(0x1000, word)
            + little(0, word) + little(UInt64(sectionsAt), word) + little(0, 4) + little(UInt64(header), 2)
            + little(0, 2) + little(0, 2) + little(UInt64(sectionBytes), 2) + little(3, 2) + little(0, 2)
        return top + names + symbols + section(0, 0, 0, 0) + section(3, header, names.count, 0)
            + section(2, symbolsAt, symbols.count, 1)
    }

    @Test(arguments: [false, true]) func elfFilesAreRead(is64: Bool) throws {
        let table = try SymbolTable(file: elf(is64: is64))
        #expect(table.symbols.count == 2)
        #expect(table["start"] == Symbol(name: "start", address: 0x1000, size: 16))
        #expect(table["data"] == Symbol(name: "data", address: 0x2000, size: 4))
    }

    /// Every byte of a file changed in some ways, and the file cut off at every length: an error or symbols, no crash.
    @Test(arguments: [false, true]) func damagedFilesAreRefused(is64: Bool) {
        let good = elf(is64: is64)
        for index in good.indices {
            for value in [0, 1, 0x7F, 0x80, 0xFF, good[index] ^ 1] as [UInt8] {
                var bytes = good
                bytes[index] = value
                _ = try? SymbolTable(file: bytes)
            }
            _ = try? SymbolTable(file: Array(good[..<index]))
        }
    }
}
