/// Symbols of an ELF file of 32 or 64 bits, little-endian. The file is untrusted.
///
/// Source: System V ABI, chapter 4, "ELF Header", "Sections", "Symbol Table"; gABI, "64-bit Object File Format".
enum ELFSymbols {
    static let magic: [UInt8] = [0x7F, 0x45, 0x4C, 0x46]

    private static let symbolTable: UInt32 = 2  // SHT_SYMTAB
    private static let dynamicSymbols: UInt32 = 11  // SHT_DYNSYM

    private struct Section {
        var type: UInt32
        var offset: UInt64
        var size: UInt64
        var link: UInt32
    }

    /// The symbols that have an address, of `.symtab`, or where that was stripped of `.dynsym`.
    static func read(_ bytes: [UInt8]) throws(SymbolError) -> [Symbol] {
        let file = File(bytes: bytes)
        guard bytes.starts(with: magic), let format = file.load(4, as: UInt8.self),
            let order = file.load(5, as: UInt8.self),
            format == 1 || format == 2
        else { throw SymbolError("it isn't an ELF file of 32 or 64 bits") }
        guard order == 1 else { throw SymbolError("the ELF file isn't little-endian") }
        let is64 = format == 2
        let sections = try sections(of: file, is64: is64)
        guard
            let table = sections.first(where: { $0.type == symbolTable })
                ?? sections.first(where: { $0.type == dynamicSymbols })
        else { throw SymbolError("the ELF file has no symbols: it was stripped") }
        guard Int(table.link) < sections.count else { throw SymbolError("the symbols' names are missing") }
        return try symbols(in: table, names: sections[Int(table.link)], of: file, is64: is64)
    }

    private static func sections(of file: File, is64: Bool) throws(SymbolError) -> [Section] {
        guard let start = is64 ? file.load(40, as: UInt64.self) : file.load(32, as: UInt32.self).map(UInt64.init),
            let entry = file.load(is64 ? 58 : 46, as: UInt16.self).map(UInt64.init),
            var count = file.load(is64 ? 60 : 48, as: UInt16.self).map(UInt64.init), entry >= (is64 ? 64 : 40)
        else { throw SymbolError("the ELF header is damaged") }
        func section(_ index: UInt64) -> Section? {
            // Offsets that overflow lie outside any file.
            let (distance, overflow) = index.multipliedReportingOverflow(by: entry)
            let (at, beyond) = start.addingReportingOverflow(distance)
            guard !overflow, !beyond else { return nil }
            guard let type = file.load(at &+ 4, as: UInt32.self) else { return nil }
            if is64 {
                guard let offset = file.load(at &+ 24, as: UInt64.self),
                    let size = file.load(at &+ 32, as: UInt64.self),
                    let link = file.load(at &+ 40, as: UInt32.self)
                else { return nil }
                return Section(type: type, offset: offset, size: size, link: link)
            }
            guard let offset = file.load(at &+ 16, as: UInt32.self), let size = file.load(at &+ 20, as: UInt32.self),
                let link = file.load(at &+ 24, as: UInt32.self)
            else { return nil }
            return Section(type: type, offset: UInt64(offset), size: UInt64(size), link: link)
        }
        // With 65,280 sections and more, the first one's size is their number.
        if count == 0, start != 0 { count = min(section(0)?.size ?? 0, UInt64(file.bytes.count) / entry) }
        var sections: [Section] = []
        for index in 0..<count {
            guard let found = section(index) else { throw SymbolError("ELF section \(index) lies outside the file") }
            sections.append(found)
        }
        return sections
    }

    private static func symbols(in table: Section, names: Section, of file: File, is64: Bool) throws(SymbolError)
        -> [Symbol]
    {
        let entry: UInt64 = is64 ? 24 : 16
        guard file.holds(table.offset, table.size), file.holds(names.offset, names.size) else {
            throw SymbolError("the ELF file's symbols lie outside it")
        }
        let count = table.size / entry
        guard count <= UInt64(SymbolTable.most) else { throw SymbolError("more than \(SymbolTable.most) symbols") }
        var symbols: [(rank: Int, symbol: Symbol)] = []
        for index in 0..<count {
            let at = table.offset + index * entry
            guard let nameOffset = file.load(at, as: UInt32.self),
                let info = file.load(at + (is64 ? 4 : 12), as: UInt8.self),
                let section = file.load(at + (is64 ? 6 : 14), as: UInt16.self),
                let address = is64
                    ? file.load(at + 8, as: UInt64.self) : file.load(at + 4, as: UInt32.self).map(UInt64.init),
                let size = is64
                    ? file.load(at + 16, as: UInt64.self) : file.load(at + 8, as: UInt32.self).map(UInt64.init)
            else { break }
            // STT_NOTYPE, STT_OBJECT, STT_FUNC; neither undefined nor a mere constant.
            guard info & 15 <= 2, section != 0, section != 0xFFF1, UInt64(nameOffset) < names.size,
                let name = file.name(at: names.offset + UInt64(nameOffset), end: names.offset + names.size),
                !name.isEmpty
            else { continue }
            // Global ones first: of several symbols with the same name the first counts.
            let rank = info >> 4 == 1 ? 0 : info >> 4 == 2 ? 1 : 2
            symbols.append((rank, Symbol(name: name, address: address, size: size)))
        }
        guard !symbols.isEmpty else { throw SymbolError("the ELF file has no symbols with an address") }
        return (0...2).flatMap { rank in symbols.filter { $0.rank == rank }.map(\.symbol) }
    }

    /// Little-endian reads that give nil beyond the end.
    private struct File {
        let bytes: [UInt8]
        private static let longestName = 4096

        func load<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type) -> T? {
            guard holds(offset, UInt64(MemoryLayout<T>.size)) else { return nil }
            return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: Int(offset), as: T.self)) }
        }

        func holds(_ offset: UInt64, _ size: UInt64) -> Bool {
            offset <= UInt64(bytes.count) && size <= UInt64(bytes.count) - offset
        }

        func name(at offset: UInt64, end: UInt64) -> String? {
            let run = bytes[Int(offset)..<Int(end)].prefix(Self.longestName)
            return run.firstIndex(of: 0).map { String(decoding: run[..<$0], as: UTF8.self) }
        }
    }
}
