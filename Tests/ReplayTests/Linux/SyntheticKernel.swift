import Foundation

/// A little file laid out as a Linux kernel is: an ELF image with kallsyms and ORC tables, and a bzImage around it.
struct SyntheticKernel {
    struct Symbol {
        var name: String
        var type: Character
        var address: UInt64
    }

    /// Where its code is linked. The lower half of the address is where it lies in memory without paging.
    static let base: UInt64 = 0xFFFF_FFFF_0010_0000
    static let functionBytes: UInt64 = 32

    /// How the tables lie: they changed places with Linux 6.4, and 6.2 put one more among them.
    enum Layout: CaseIterable {
        case linux6_1, linux6_2, linux6_4
    }

    var symbols: [Symbol]
    var layout = Layout.linux6_1
    /// CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what isn't negative is no address of the kernel's.
    var hasPerCPU = true
    /// Stack offsets and flags of ORC by address, ascending.
    var orc: [(address: UInt64, sp: Int16, bp: Int16, flags: UInt16)] = []
    var hasOrcHeader = false
    /// Code that isn't NOPs.
    var code: [(address: UInt64, bytes: [UInt8])] = []
    /// What the kernel may put in the place of its code when it boots; and the size of an entry, by version.
    var alternatives: [(address: UInt64, replacement: [UInt8])] = []
    var alternativeBytes = 12

    /// `count` functions of 32 bytes each, `function_0` to …, and `entry_SYSCALL_64` before them.
    init(functions count: Int) {
        symbols = [Symbol(name: "entry_SYSCALL_64", type: "T", address: Self.base)]
        symbols += (0..<count).map {
            Symbol(name: "function_\($0)", type: $0 % 2 == 0 ? "T" : "t", address: Self.address(ofFunction: $0))
        }
    }

    static func address(ofFunction number: Int) -> UInt64 { base + functionBytes * UInt64(number + 1) }

    private var codeBytes: Int { (symbols.count + 2) * Int(Self.functionBytes) }

    // MARK: kallsyms

    /// Each byte stands for itself where it occurs in names; the others for a text of several characters.
    private static let tokens: [[UInt8]] = (0..<256).map { (value: Int) -> [UInt8] in
        if value == 1 { return Array("function_".utf8) }
        let byte = UInt8(value)
        let isPlain = (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || byte == 0x5F
        return isPlain ? [byte] : Array("_\(value)_".utf8)
    }

    private func compressed(_ symbol: Symbol) -> [UInt8] {
        var text = Array("\(symbol.type)\(symbol.name)".utf8)
        let long = Self.tokens[1]
        if text.count > long.count, Array(text[1...long.count]) == long { text.replaceSubrange(1...long.count, with: [1]) }
        return text.count < 0x80 ? [UInt8(text.count)] + text : [UInt8(text.count & 0x7F) | 0x80, UInt8(text.count >> 7)] + text
    }

    var kallsyms: [UInt8] {
        let perCPU = hasPerCPU ? (0..<3).map { Symbol(name: "percpu_\($0)", type: "A", address: UInt64($0) * 64) } : []
        let all = perCPU + symbols
        var names: [UInt8] = []
        var markers: [UInt8] = []
        for (index, symbol) in all.enumerated() {
            if index % 256 == 0 { markers += UInt32(names.count).little }
            names += compressed(symbol)
        }
        var addresses: [UInt8] = []
        for symbol in all {
            if symbol.type == "A" {
                addresses += UInt32(symbol.address).little
            } else if hasPerCPU {
                addresses += UInt32(bitPattern: Int32(-1 - Int64(symbol.address - Self.base))).little
            } else {
                addresses += UInt32(symbol.address - Self.base).little
            }
        }
        var texts: [UInt8] = []
        var index: [UInt8] = []
        for token in Self.tokens {
            index += UInt16(texts.count).little
            texts += token + [0]
        }
        let places = addresses.padded + Self.base.little
        let named = (UInt32(all.count).little).padded + names.padded + markers.padded
        let sorted = [UInt8](repeating: 0x5A, count: 3 * all.count).padded
        let tokens = texts.padded + index
        return switch layout {
        case .linux6_1: places + named + tokens
        case .linux6_2: places + named + sorted + tokens
        case .linux6_4: named + tokens + places + sorted
        }
    }

    // MARK: Files

    /// The ELF image.
    var elf: [UInt8] {
        var text = [UInt8](repeating: 0x90, count: codeBytes).padded
        for (address, bytes) in code {
            let offset = Int(address - Self.base)
            text.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
        }
        // Something before the tables, so that they don't begin with the segment.
        let data = Array("Linux version 0.0\0 and some padding".utf8).padded + [UInt8](repeating: 0, count: 64) + kallsyms.padded
        let dataAddress = Self.base + UInt64(text.count)
        let tableAddress = dataAddress + UInt64(data.count)
        let replacementAddress = tableAddress + UInt64((alternatives.count * alternativeBytes + 7) / 8 * 8)
        let replacements = alternatives.flatMap(\.replacement)
        let table = alternativeTable(at: tableAddress, replacements: replacementAddress)
        let placesAddress = replacementAddress + UInt64(replacements.padded.count)
        let places = orc.enumerated().flatMap { index, entry in
            UInt32(truncatingIfNeeded: entry.address &- (placesAddress + UInt64(4 * index))).little
        }
        let entries = orc.flatMap { UInt16(bitPattern: $0.sp).little + UInt16(bitPattern: $0.bp).little + $0.flags.little }
        var sections: [(name: String, flags: UInt64, address: UInt64, content: [UInt8])] = [
            (".text", 6, Self.base, text), (".rodata", 2, dataAddress, data),
            (".altinstructions", 2, tableAddress, table), (".altinstr_replacement", 6, replacementAddress, replacements.padded),
            ("__ksymtab", 2, dataAddress, [1]),
            (".orc_unwind_ip", 2, placesAddress, places), (".orc_unwind", 2, placesAddress, entries),
        ]
        if hasOrcHeader { sections.append((".orc_header", 2, 0, [UInt8](repeating: 7, count: 20))) }
        return Self.elf(sections, loaded: 4)
    }

    /// Entries of `struct alt_instr`. What follows the table up to a multiple of 8 is no part of its section.
    private func alternativeTable(at address: UInt64, replacements: UInt64) -> [UInt8] {
        var table: [UInt8] = []
        var place = replacements
        for (instruction, replacement) in alternatives {
            let here = address + UInt64(table.count)
            let length = UInt8(replacement.count)
            var entry = UInt32(truncatingIfNeeded: instruction &- here).little
            entry += UInt32(truncatingIfNeeded: place &- (here + 4)).little
            // Before Linux 6.3 the feature has 16 bits; before 5.14 the padding's length stands at the end.
            entry += alternativeBytes == 14 ? UInt32(7).little : UInt16(7).little
            entry += [length, length] + (alternativeBytes == 13 ? [0] : [])
            table += entry
            place += UInt64(replacement.count)
        }
        return table
    }

    /// A file of these sections; the first `loaded` make a segment, and follow each other in memory. A note says where it is
    /// entered.
    private static func elf(_ sections: [(name: String, flags: UInt64, address: UInt64, content: [UInt8])], loaded: Int)
        -> [UInt8] {
        let names = [UInt8(0)] + sections.flatMap { Array($0.name.utf8) + [0] } + Array(".shstrtab\0".utf8)
        var body: [UInt8] = []
        var headers = [UInt8](repeating: 0, count: 64)
        let start = 64 + 2 * 56
        func header(_ name: Int, _ type: UInt32, _ flags: UInt64, _ address: UInt64, _ content: [UInt8]) {
            headers += UInt32(name).little + type.little + flags.little + address.little
            headers += UInt64(start + body.count).little + UInt64(content.count).little
            headers += [UInt8](repeating: 0, count: 24)
            body += content
        }
        var name = 1
        for (index, section) in sections.enumerated() {
            // What is loaded lies in the file as in memory.
            if index < loaded { body += [UInt8](repeating: 0, count: Int(section.address - base) - body.count) }
            header(name, 1, section.flags, section.address, section.content)
            name += section.name.utf8.count + 1
        }
        let size = sections[..<loaded].map { Int($0.address - base) + $0.content.count }.max() ?? 0
        header(name, 3, 0, 0, names)
        let table = start + body.count
        var file: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
        file += UInt16(2).little + UInt16(62).little + UInt32(1).little
        file += (base & 0xFFFF_FFFF).little + UInt64(64).little + UInt64(table).little
        file += UInt32(0).little + UInt16(64).little + UInt16(56).little + UInt16(2).little
        file += UInt16(64).little + UInt16(sections.count + 2).little + UInt16(sections.count + 1).little
        // PT_LOAD, readable and executable.
        file += UInt32(1).little + UInt32(5).little + UInt64(start).little + base.little
        file += (base & 0xFFFF_FFFF).little + UInt64(size).little + UInt64(size).little + UInt64(4096).little
        // PT_NOTE: XEN_ELFNOTE_PHYS32_ENTRY.
        let note = UInt32(4).little + UInt32(4).little + UInt32(18).little + Array("Xen\0".utf8)
            + UInt32(truncatingIfNeeded: base).little
        file += UInt32(4).little + UInt32(4).little + UInt64(table + headers.count).little + UInt64(0).little
        file += UInt64(0).little + UInt64(note.count).little + UInt64(note.count).little + UInt64(4).little
        return file + body + headers + note
    }

    enum Packing: CaseIterable {
        case none, lz4, zstd
    }

    /// A bzImage with the ELF image in it.
    func bzImage(_ packing: Packing) -> [UInt8] {
        let kernel = elf
        switch packing {
        case .none: return Self.bzImage(payload: kernel)
        case .lz4: return Self.bzImage(payload: Self.lz4(kernel) + UInt32(kernel.count).little)
        case .zstd: return Self.bzImage(payload: Self.zstd(kernel) + UInt32(kernel.count).little)
        }
    }

    static func bzImage(payload: [UInt8]) -> [UInt8] {
        var file = [UInt8](repeating: 0, count: 3 * 512)
        file[0x1F1] = 2  // setup_sects
        file.replaceSubrange(0x1FE..<0x206, with: [0x55, 0xAA, 0xEB, 0x66] + Array("HdrS".utf8))
        file.replaceSubrange(0x206..<0x208, with: UInt16(0x20F).little)
        file.replaceSubrange(0x248..<0x250, with: UInt32(16).little + UInt32(payload.count).little)
        return file + [UInt8](repeating: 0xCC, count: 16) + payload + [0xEE, 0xEE]
    }

    /// A legacy frame of blocks that hold everything literally.
    static func lz4(_ content: [UInt8]) -> [UInt8] {
        var frame = UInt32(0x184C_2102).little
        for start in stride(from: 0, to: content.count, by: 8 << 20) {
            let part = content[start..<min(start + 8 << 20, content.count)]
            // A token with 15 and more literals, the rest of their number in bytes of up to 255.
            let rest = part.count - 15
            let block = [0xF0] + [UInt8](repeating: 255, count: rest / 255) + [UInt8(rest % 255)] + part
            frame += UInt32(block.count).little + block
        }
        return frame
    }

    /// A frame of raw blocks. Source: RFC 8878, 3.1.1.
    static func zstd(_ content: [UInt8]) -> [UInt8] {
        // One segment, the content's size in 8 bytes.
        var frame: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD, 0xE0] + UInt64(content.count).little
        let size = 128 << 10
        for start in stride(from: 0, to: content.count, by: size) {
            let part = content[start..<min(start + size, content.count)]
            let isLast: UInt32 = start + size >= content.count ? 1 : 0
            frame += UInt32(isLast | UInt32(part.count) << 3).little.prefix(3) + part
        }
        return frame
    }
}

extension FixedWidthInteger {
    /// Little-endian.
    var little: [UInt8] { withUnsafeBytes(of: littleEndian) { Array($0) } }
}

extension [UInt8] {
    /// Up to a multiple of 8 bytes.
    fileprivate var padded: [UInt8] { self + [UInt8](repeating: 0, count: (8 - count % 8) % 8) }
}

/// A distribution's kernel, where one is at hand.
enum RealKernel {
    static let path: String? = {
        let files = FileManager.default
        let named = ProcessInfo.processInfo.environment["VMRR_LINUX"].map { $0 + "/vmlinuz" }
        let installed = (try? files.contentsOfDirectory(atPath: "/boot"))?.filter { $0.hasPrefix("vmlinuz") }.sorted() ?? []
        return ([named, ".build-lab/vmlinuz"].compactMap { $0 } + installed.map { "/boot/" + $0 }).first {
            files.isReadableFile(atPath: $0)
        }
    }()

    static func bytes() throws -> [UInt8] { try Array(Data(contentsOf: URL(fileURLWithPath: path ?? ""))) }
}
