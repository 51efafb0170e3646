/// A 64-bit ELF kernel: what of it is loaded, and where its code lies.
///
/// Source: System V ABI, "ELF Header", "Sections", "Program Header", with the 64-bit layouts of the AMD64 supplement.
struct ELFKernel {
    struct Segment {
        var content: ArraySlice<UInt8>
        var physical: UInt64
        /// Not fewer than `content` has.
        var memoryBytes: UInt64
    }

    private enum SegmentType {
        static let load: UInt32 = 1
        static let note: UInt32 = 4
    }

    private enum Section {
        static let programBits: UInt32 = 1
        static let executable: UInt64 = 1 << 2
        static let headerBytes = 64
    }

    private static let segmentHeaderBytes = 56
    /// Of segments and of sections: a kernel has a few dozen.
    private static let mostHeaders = 1024

    private(set) var segments: [Segment] = []
    private(set) var notes: [ArraySlice<UInt8>] = []
    /// Physical addresses of executable sections.
    private(set) var code: [Range<UInt64>] = []

    /// Whether a file is a 64-bit x86 ELF file, good or bad.
    static func isELF64(_ file: ImageReader) -> Bool {
        file.bytes.starts(with: [0x7F, 0x45, 0x4C, 0x46, 2, 1]) && file.load(18, as: UInt16.self) == 62
    }

    init(_ file: ImageReader) throws(BootError) {
        guard Self.isELF64(file), let table: UInt64 = file.load(32), let entryBytes: UInt16 = file.load(54),
            let count: UInt16 = file.load(56), Int(entryBytes) >= Self.segmentHeaderBytes, count <= Self.mostHeaders
        else { throw .badImage("the ELF header is damaged") }
        var offsets: [(file: Range<UInt64>, physical: UInt64)] = []
        for i in 0..<Int(count) {
            let (at, overflow) = table.addingReportingOverflow(UInt64(i) * UInt64(entryBytes))
            guard !overflow, let header = file.slice(at, UInt64(Self.segmentHeaderBytes)) else {
                throw .badImage("ELF program header \(i) lies outside the file")
            }
            let fields = ImageReader(bytes: Array(header))
            func field(_ offset: Int) -> UInt64 { fields.load(offset) ?? 0 }
            let type = UInt32(truncatingIfNeeded: field(0))
            let (offset, physical, fileBytes, memoryBytes) = (field(8), field(24), field(32), field(40))
            guard type == SegmentType.load && memoryBytes > 0 || type == SegmentType.note else { continue }
            guard let content = file.slice(offset, fileBytes) else {
                throw .badImage("the kernel is cut off: ELF segment \(i) lies outside the file")
            }
            if type == SegmentType.note {
                notes.append(content)
                continue
            }
            guard fileBytes <= memoryBytes, physical < 1 << 40, memoryBytes < 1 << 40 else {
                throw .badImage("ELF program header \(i) is damaged")
            }
            segments.append(Segment(content: content, physical: physical, memoryBytes: memoryBytes))
            offsets.append((offset..<(offset + fileBytes), physical))
        }
        guard !segments.isEmpty else { throw .badImage("the ELF file has nothing to load") }
        code = Self.executableSections(file).compactMap { section in
            offsets.first { $0.file.lowerBound <= section.lowerBound && section.upperBound <= $0.file.upperBound }.map {
                let start = $0.physical + (section.lowerBound - $0.file.lowerBound)
                return start..<(start + UInt64(section.count))
            }
        }
    }

    /// Where they lie in the file. A file without section headers has none.
    private static func executableSections(_ file: ImageReader) -> [Range<UInt64>] {
        guard let table: UInt64 = file.load(40), let entryBytes: UInt16 = file.load(58), let count: UInt16 = file.load(60),
            Int(entryBytes) >= Section.headerBytes, count <= mostHeaders
        else { return [] }
        return (0..<Int(count)).compactMap { i in
            let (at, overflow) = table.addingReportingOverflow(UInt64(i) * UInt64(entryBytes))
            guard !overflow, let header = file.slice(at, UInt64(Section.headerBytes)) else { return nil }
            let fields = ImageReader(bytes: Array(header))
            guard fields.load(4, as: UInt32.self) == Section.programBits,
                let flags: UInt64 = fields.load(8), flags & Section.executable != 0,
                let offset: UInt64 = fields.load(24), let size: UInt64 = fields.load(32),
                file.slice(offset, size) != nil
            else { return nil }
            return offset..<(offset + size)
        }
    }
}
