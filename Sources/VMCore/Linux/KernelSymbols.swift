/// The symbols that a Linux kernel carries for its own use, kallsyms, decoded from its image.
///
/// The tables have no symbols themselves and lie in `.rodata`: they are found by what they hold, and count only where
/// they agree with each other in full.
///
/// Source: Linux, scripts/kallsyms.c (how they are written), kernel/kallsyms.c (how they are read).
public struct KernelSymbols: Sendable {
    public struct Symbol: Equatable, Sendable {
        public var name: String
        /// As the image was linked; a kernel with KASLR moves.
        public var address: UInt64
        /// As nm prints it: t and T for code.
        public var type: Character

        public init(name: String, address: UInt64, type: Character) {
            self.name = name
            self.address = address
            self.type = type
        }

        public var isCode: Bool { type == "t" || type == "T" || type == "w" || type == "W" }
    }

    /// In the order of the table: by address. Offsets into the per-CPU area are left out.
    public let symbols: [Symbol]

    /// Why an image gives no symbols.
    public struct Missing: Error, Equatable, CustomStringConvertible {
        public var description: String
    }

    /// Of an unpacked kernel.
    public init(_ kernel: ELFImage) throws(Missing) {
        for segment in kernel.segments {
            let run = segment.offset..<(segment.offset + segment.fileBytes)
            if let symbols = Self.search(kernel.bytes, run) {
                self.symbols = symbols
                return
            }
        }
        throw Missing(description: "the kernel has no symbol table of its own: it was built without CONFIG_KALLSYMS, "
            + "or by a version whose table is laid out in another way")
    }

    private static func search(_ image: [UInt8], _ run: Range<Int>) -> [Symbol]? {
        image.withUnsafeBytes { raw in
            let bytes = UnsafeRawBufferPointer(rebasing: raw[run])
            for tokens in TokenTable.all(in: bytes) {
                guard let names = NameTable.find(in: bytes, before: tokens.start) else { continue }
                for place in AddressTable.places(names: names, tokens: tokens) {
                    guard let addresses = AddressTable(bytes, place, count: names.count) else { continue }
                    return decode(bytes, tokens, names, addresses)
                }
            }
            return nil
        }
    }

    private static func decode(_ bytes: UnsafeRawBufferPointer, _ tokens: TokenTable, _ names: NameTable,
                               _ addresses: AddressTable) -> [Symbol] {
        var symbols: [Symbol] = []
        symbols.reserveCapacity(names.count)
        var name: [UInt8] = []
        names.forEach(bytes) { index, content in
            guard let address = addresses.address(bytes, index) else { return }
            name.removeAll(keepingCapacity: true)
            for token in content { name += bytes[tokens.tokens[Int(token)]] }
            guard name.count > 1 else { return }
            symbols.append(Symbol(name: String(decoding: name.dropFirst(), as: UTF8.self), address: address,
                                  type: Character(Unicode.Scalar(name[0]))))
        }
        return symbols
    }
}

/// `kallsyms_token_table` and `kallsyms_token_index`: what the 256 byte values of compressed names stand for.
private struct TokenTable {
    /// Where each token's text is.
    let tokens: [Range<Int>]
    let start: Int
    /// Behind the index.
    let end: Int

    private static let count = 256
    private static let longestToken = 64

    /// Index and table prove each other: every offset of the index leads behind the end of a text in the table.
    static func all(in bytes: UnsafeRawBufferPointer) -> [Self] {
        var found: [Self] = []
        var at = 0
        while at + 2 * count <= bytes.count {
            defer { at += 8 }
            guard bytes[at] == 0, bytes[at + 1] == 0, let index = index(bytes, at), let table = Self(bytes, index, at)
            else { continue }
            found.append(table)
        }
        return found
    }

    private static func index(_ bytes: UnsafeRawBufferPointer, _ at: Int) -> [Int]? {
        var last = 0
        for i in 1..<count {
            let value = Int(bytes.load(at + 2 * i, as: UInt16.self))
            // A text has a character at least, and an end.
            guard value >= last + 2, value <= last + longestToken else { return nil }
            last = value
        }
        return (0..<count).map { Int(bytes.load(at + 2 * $0, as: UInt16.self)) }
    }

    private init?(_ bytes: UnsafeRawBufferPointer, _ index: [Int], _ at: Int) {
        // The table begins at a multiple of 8 and ends with the last text and what fills the last 8 bytes.
        let last = index[Self.count - 1]
        for start in stride(from: (at - last - 2) / 8 * 8, through: at - last - Self.longestToken - 8, by: -8)
        where start >= 0 {
            guard index.dropFirst().allSatisfy({ bytes[start + $0 - 1] == 0 }),
                let end = bytes[(start + last)..<at].firstIndex(of: 0), (end + 8) / 8 * 8 == at
            else { continue }
            let ends = index.dropFirst().map { start + $0 - 1 } + [end]
            tokens = zip(index, ends).map { (start + $0)..<$1 }
            self.start = start
            self.end = at + 2 * Self.count
            return
        }
        return nil
    }
}

/// `kallsyms_num_syms`, `kallsyms_names` and `kallsyms_markers`.
private struct NameTable {
    let count: Int
    /// Where the number of symbols stands.
    let start: Int
    let names: Range<Int>

    /// Symbols that share a marker.
    private static let group = 256
    /// A compressed name is as long as its tokens are many; kernels have 20 on average.
    private static let longestName = 256
    private static let mostSymbols = 1 << 22

    /// Looks for markers: 0, then the offset of every 256th name. From each such run the names lie backwards.
    static func find(in bytes: UnsafeRawBufferPointer, before end: Int) -> Self? {
        var at = 0
        while at + 12 <= end {
            defer { at += 8 }
            guard bytes.load(at, as: UInt32.self) == 0 else { continue }
            let run = markers(bytes, at, end)
            guard run >= 3 else { continue }
            // What follows the markers may look like one more.
            for markers in stride(from: run, through: max(3, run - 2), by: -1) {
                if let table = table(bytes, markersAt: at, count: markers) { return table }
            }
        }
        return nil
    }

    private static func markers(_ bytes: UnsafeRawBufferPointer, _ at: Int, _ end: Int) -> Int {
        var count = 1
        var last = 0
        while at + 4 * count + 4 <= end {
            let next = Int(bytes.load(at + 4 * count, as: UInt32.self))
            guard next - last >= 2 * group, next - last <= group * longestName else { break }
            last = next
            count += 1
        }
        return count
    }

    private static func table(_ bytes: UnsafeRawBufferPointer, markersAt: Int, count markers: Int) -> Self? {
        let last = Int(bytes.load(markersAt + 4 * (markers - 1), as: UInt32.self))
        // All but the last group's names are as long as the last marker says.
        for length in stride(from: last / 8 * 8, through: last + group * longestName, by: 8) {
            let names = markersAt - length
            guard names >= 8 else { return nil }
            let count = Int(bytes.load(names - 8, as: UInt32.self))
            guard (count + group - 1) / group == markers, count <= mostSymbols, bytes.load(names - 4, as: UInt32.self) == 0
            else { continue }
            let table = Self(count: count, start: names - 8, names: names..<markersAt)
            if table.agrees(bytes, markersAt) { return table }
        }
        return nil
    }

    /// Whether the names have their places where the markers say, and fill all that there is.
    private func agrees(_ bytes: UnsafeRawBufferPointer, _ markersAt: Int) -> Bool {
        var at = names.lowerBound
        for index in 0..<count {
            if index % Self.group == 0 {
                let marker = Int(bytes.load(markersAt + 4 * (index / Self.group), as: UInt32.self))
                guard at - names.lowerBound == marker else { return false }
            }
            guard let content = content(bytes, at) else { return false }
            at = content.upperBound
        }
        return (at + 7) / 8 * 8 == names.upperBound
    }

    /// The compressed name that begins with its length at `at`: a byte, or two where the first has bit 7.
    private func content(_ bytes: UnsafeRawBufferPointer, _ at: Int) -> Range<Int>? {
        guard at + 1 < names.upperBound else { return nil }
        let isLong = bytes[at] & 0x80 != 0
        let length = isLong ? Int(bytes[at] & 0x7F) | Int(bytes[at + 1]) << 7 : Int(bytes[at])
        let start = at + (isLong ? 2 : 1)
        guard length > 0, length <= names.upperBound - start else { return nil }
        return start..<(start + length)
    }

    /// Invariant: the table agreed with its markers.
    func forEach(_ bytes: UnsafeRawBufferPointer, _ body: (Int, Slice<UnsafeRawBufferPointer>) -> Void) {
        var at = names.lowerBound
        for index in 0..<count {
            guard let content = content(bytes, at) else { return }
            body(index, bytes[content])
            at = content.upperBound
        }
    }
}

/// `kallsyms_offsets` and `kallsyms_relative_base`.
private struct AddressTable {
    private let offsets: Int
    private let base: UInt64
    /// With CONFIG_KALLSYMS_ABSOLUTE_PERCPU an offset from 0 on is an address in the per-CPU area, and one below 0
    /// lies -1 minus itself behind the base.
    private let hasPerCPU: Bool

    /// The upper half of the address space, where a kernel is.
    private static let kernel: UInt64 = 0xFFFF_8000_0000_0000

    /// Before the names and the number of them, or, from Linux 6.4 on, behind the token index.
    static func places(names: NameTable, tokens: TokenTable) -> [(offsets: Int, base: Int)] {
        let bytes = (4 * names.count + 7) / 8 * 8
        let behind = (tokens.end + 7) / 8 * 8
        return [(names.start - 8 - bytes, names.start - 8), (behind, behind + bytes)]
    }

    init?(_ bytes: UnsafeRawBufferPointer, _ place: (offsets: Int, base: Int), count: Int) {
        guard place.offsets >= 0, place.base + 8 <= bytes.count else { return nil }
        offsets = place.offsets
        base = bytes.load(place.base, as: UInt64.self)
        guard base >= Self.kernel else { return nil }
        var negative = 0
        for index in 0..<count where bytes.load(place.offsets + 4 * index, as: Int32.self) < 0 { negative += 1 }
        hasPerCPU = negative > count / 2
        // The table is sorted by address.
        var last: UInt64 = 0
        for index in 0..<count {
            guard let next = address(bytes, index) else { continue }
            guard next >= last else { return nil }
            last = next
        }
        guard last > 0 else { return nil }
    }

    /// Nil for what is no address of the kernel.
    func address(_ bytes: UnsafeRawBufferPointer, _ index: Int) -> UInt64? {
        let offset = bytes.load(offsets + 4 * index, as: Int32.self)
        if !hasPerCPU { return base &+ UInt64(UInt32(bitPattern: offset)) }
        return offset < 0 ? base &+ UInt64(-1 - Int64(offset)) : nil
    }
}

extension UnsafeRawBufferPointer {
    /// Little-endian; the caller has checked that it lies within.
    fileprivate func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
        T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}
