/// A 64-bit ELF executable for x86-64, as far as a kernel's loader and tools want to know it. The file is untrusted.
///
/// Source: System V ABI, "ELF Header", "Sections", "Program Header", with the 64-bit layouts of the AMD64 supplement.
public struct ELFImage: Sendable {
    public static let magic: [UInt8] = [0x7F, 0x45, 0x4C, 0x46]

    /// A part of the file that is loaded.
    public struct Segment: Equatable, Sendable {
        public var offset: Int
        /// Bytes in the file. They lie within it.
        public var fileBytes: Int
        /// Bytes in memory, not fewer.
        public var memoryBytes: UInt64
        public var virtual: UInt64
        public var physical: GuestPhysicalAddress
        public var isExecutable: Bool
    }

    public struct Section: Equatable, Sendable {
        public var name: String
        public var address: UInt64
        /// Where it lies in the file, and does lie within it; empty where it has no content.
        public var content: Range<Int>
        public var isExecutable: Bool
    }

    public let bytes: [UInt8]
    /// What the header gives as the entry; of a kernel, a physical address.
    public let entry: UInt64
    public let segments: [Segment]
    /// Where the notes lie in the file.
    public let notes: [Range<Int>]
    public let sections: [Section]

    private static let mostHeaders: UInt16 = 1 << 12

    public init(_ bytes: [UInt8]) throws(BootError) {
        let file = ImageReader(bytes: bytes)
        guard bytes.starts(with: Self.magic) else { throw .badImage("not an ELF file") }
        guard Self.isELF64(file) else { throw .badImage("the ELF file isn't for x86-64") }
        guard let entry = file.load(24, as: UInt64.self) else { throw .badImage("the ELF header is cut off") }
        self.bytes = bytes
        self.entry = entry
        (segments, notes) = try Self.segments(file)
        sections = try Self.sections(file)
    }

    /// Whether a file is a 64-bit x86 ELF file, good or bad.
    static func isELF64(_ file: ImageReader) -> Bool {
        // 64 bits, little-endian, EM_X86_64.
        file.bytes.starts(with: magic + [2, 1]) && file.load(18, as: UInt16.self) == 62
    }

    private static func table(_ file: ImageReader, offset: Int, size: Int, count: Int, least: UInt16, _ what: String)
        throws(BootError) -> [Int] {
        guard let start = file.load(offset, as: UInt64.self), let entry = file.load(size, as: UInt16.self),
            let number = file.load(count, as: UInt16.self)
        else { throw .badImage("the ELF header is cut off") }
        guard number > 0 else { return [] }
        guard entry >= least, number <= mostHeaders, file.slice(start, UInt64(entry) * UInt64(number)) != nil else {
            throw .badImage("the ELF file's \(what) headers lie outside it")
        }
        return (0..<Int(number)).map { Int(start) + $0 * Int(entry) }
    }

    private static func segments(_ file: ImageReader) throws(BootError) -> ([Segment], notes: [Range<Int>]) {
        var segments: [Segment] = []
        var notes: [Range<Int>] = []
        for (number, at) in try table(file, offset: 32, size: 54, count: 56, least: 56, "program").enumerated() {
            guard let type: UInt32 = file.load(at), let flags: UInt32 = file.load(at + 4),
                let offset: UInt64 = file.load(at + 8), let virtual: UInt64 = file.load(at + 16),
                let physical: UInt64 = file.load(at + 24), let fileBytes: UInt64 = file.load(at + 32),
                let memoryBytes: UInt64 = file.load(at + 40)
            else { throw .badImage("an ELF program header is cut off") }
            guard type == 1 && memoryBytes > 0 || type == 4 else { continue }  // PT_LOAD, PT_NOTE
            guard let content = file.slice(offset, fileBytes) else {
                throw .badImage("the kernel is cut off: ELF segment \(number) lies outside the file")
            }
            if type == 4 {
                notes.append(content.indices)
                continue
            }
            guard fileBytes <= memoryBytes, !physical.addingReportingOverflow(memoryBytes).overflow,
                !virtual.addingReportingOverflow(memoryBytes).overflow
            else { throw .badImage("ELF program header \(number) is damaged") }
            segments.append(Segment(offset: Int(offset), fileBytes: Int(fileBytes), memoryBytes: memoryBytes,
                                    virtual: virtual, physical: .init(physical), isExecutable: flags & 1 != 0))
        }
        return (segments, notes)
    }

    private static func sections(_ file: ImageReader) throws(BootError) -> [Section] {
        let headers = try table(file, offset: 40, size: 58, count: 60, least: 64, "section")
        var found: [(name: UInt32, section: Section)] = []
        for at in headers {
            guard let name: UInt32 = file.load(at), let type: UInt32 = file.load(at + 4),
                let flags: UInt64 = file.load(at + 8), let address: UInt64 = file.load(at + 16),
                let offset: UInt64 = file.load(at + 24), let size: UInt64 = file.load(at + 32)
            else { throw .badImage("an ELF section header is cut off") }
            // SHT_NULL and SHT_NOBITS have no content.
            var content = 0..<0
            if type != 0, type != 8 {
                guard let slice = file.slice(offset, size) else { throw .badImage("an ELF section lies outside the file") }
                content = slice.indices
            }
            // SHF_EXECINSTR
            found.append((name, Section(name: "", address: address, content: content, isExecutable: flags & 4 != 0)))
        }
        guard let index: UInt16 = file.load(62), Int(index) < found.count else { return found.map(\.section) }
        let names = file.bytes[found[Int(index)].section.content]
        return found.map { offset, section in
            var section = section
            section.name = String(decoding: names.dropFirst(Int(offset)).prefix(256).prefix { $0 != 0 }, as: UTF8.self)
            return section
        }
    }

    public func section(_ name: String) -> Section? { sections.first { $0.name == name } }

    /// Physical addresses of the executable sections.
    var code: [Range<UInt64>] {
        sections.filter { $0.isExecutable && !$0.content.isEmpty }.compactMap { section in
            segments.first { $0.offset <= section.content.lowerBound && section.content.upperBound <= $0.offset + $0.fileBytes }
                .map { segment in
                    let start = segment.physical.rawValue + UInt64(section.content.lowerBound - segment.offset)
                    return start..<(start + UInt64(section.content.count))
                }
        }
    }

    /// Where in the file the content of a virtual address is, as far as `count` bytes of it are in one segment.
    public func offset(of virtual: UInt64, count: Int) -> Int? {
        for segment in segments where virtual >= segment.virtual && count >= 0 {
            let distance = virtual - segment.virtual
            if distance <= UInt64(segment.fileBytes), UInt64(count) <= UInt64(segment.fileBytes) - distance {
                return segment.offset + Int(distance)
            }
        }
        return nil
    }
}
