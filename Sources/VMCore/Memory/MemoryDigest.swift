/// A digest of guest memory that is kept up to date page by page.
///
/// It is the sum, lane by lane, of the XXH3-128 of each page that isn't all zeros, seeded with the page's number. So it
/// depends on what memory holds and not on which pages were written, in what order, or how precisely dirty pages are
/// reported: the same in every engine.
public struct Digest128: Hashable, Codable, Sendable, CustomStringConvertible {
    public var low: UInt64
    public var high: UInt64

    public init(low: UInt64 = 0, high: UInt64 = 0) {
        self.low = low
        self.high = high
    }

    /// XXH3-128 of some bytes.
    public init(of bytes: UnsafeRawBufferPointer) { self = XXH3.digest(bytes) }

    public var description: String { Self.hex(high) + Self.hex(low) }

    private static func hex(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    mutating func add(_ other: Self) {
        low = low &+ other.low
        high = high &+ other.high
    }

    mutating func subtract(_ other: Self) {
        low = low &- other.low
        high = high &- other.high
    }

    public init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        guard text.utf8.count == 32, let high = UInt64(text.prefix(16), radix: 16),
            let low = UInt64(text.suffix(16), radix: 16)
        else {
            throw DecodingError.dataCorrupted(.init(codingPath: decoder.codingPath, debugDescription: "not a digest"))
        }
        self.init(low: low, high: high)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

/// How a page is read before it is hashed.
public enum DigestKind: Sendable {
    /// Every bit counts.
    case strict
    /// Bits 5 and 6 of 32-bit words with bit 0 set count as 0: accessed and dirty bits of page-table entries, which a
    /// processor sets when its translation caches happen to need them.
    case masked
}

/// A page in its two readings, hashed as they are asked for.
///
/// `scratch` has room for a page. Invariant: `page` has exactly `pageSize` bytes, aligned to 8.
private struct PageReadings {
    private let page: UnsafeRawBufferPointer
    private let masked: UnsafeRawBufferPointer
    private let seed: UInt64
    /// Whether all is zero, and whether the readings differ: bits that either has.
    private let any: UInt64
    private let noise: UInt64

    init(_ page: UnsafeRawBufferPointer, number: Int, scratch: UnsafeMutableRawPointer) {
        let words = page.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: UInt64.self)
        let target = scratch.assumingMemoryBound(to: UInt64.self)
        var any: UInt64 = 0
        var noise: UInt64 = 0
        for i in 0..<(pageSize / 8) {
            let word = words[i]
            let present = word & 0x1_0000_0001
            let ignored = word & (present << 5 | present << 6)
            any |= word
            noise |= ignored
            target[i] = word ^ ignored
        }
        (self.page, self.any, self.noise) = (page, any, noise)
        masked = UnsafeRawBufferPointer(start: scratch, count: pageSize)
        seed = UInt64(number) &+ 1
    }

    /// Zero for a page of zeros.
    func digest(_ kind: DigestKind) -> Digest128 {
        any == 0 ? Digest128() : XXH3.digest(kind == .masked ? masked : page, seed: seed)
    }

    var digests: (masked: Digest128, strict: Digest128) {
        let strict = digest(.strict)
        return (noise == 0 ? strict : digest(.masked), strict)
    }
}

/// The masked digest of one machine's memory, kept current from the pages reported dirty.
public final class MemoryDigest {
    private let memory: GuestMemory
    private var pages: [Digest128]
    private let scratch = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
    public private(set) var total = Digest128()

    public init(memory: GuestMemory) {
        self.memory = memory
        pages = Array(repeating: Digest128(), count: memory.filePages)
        memory.forEachTouchedPage { update(page: $0) }
    }

    deinit { scratch.deallocate() }

    /// Takes a page's current content into the digest.
    public func update(page: Int) {
        let new = PageReadings(memory.page(page), number: page, scratch: scratch).digest(.masked)
        total.subtract(pages[page])
        total.add(new)
        pages[page] = new
    }

    /// Reads all of memory anew, for the digests that are printed and stored.
    public static func ofAll(_ memory: GuestMemory, kind: DigestKind) -> Digest128 {
        let scratch = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
        defer { scratch.deallocate() }
        var total = Digest128()
        memory.forEachTouchedPage { total.add(PageReadings(memory.page($0), number: $0, scratch: scratch).digest(kind)) }
        return total
    }
}

/// Both digests of a memory, kept current by someone who is given copies of its pages: 32 bytes a page.
public final class MemoryDigestTable {
    private var pages: [(masked: Digest128, strict: Digest128)]
    private let scratch = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
    public private(set) var masked = Digest128()
    public private(set) var strict = Digest128()

    /// Reads all of memory.
    public init(memory: GuestMemory) {
        pages = Array(repeating: (Digest128(), Digest128()), count: memory.filePages)
        memory.forEachTouchedPage { update(page: $0, content: memory.page($0)) }
    }

    deinit { scratch.deallocate() }

    /// Takes a page's content into the digests. `content` has `pageSize` bytes, aligned to 8.
    public func update(page: Int, content: UnsafeRawBufferPointer) {
        let new = PageReadings(content, number: page, scratch: scratch).digests
        masked.subtract(pages[page].masked)
        strict.subtract(pages[page].strict)
        pages[page] = new
        masked.add(new.masked)
        strict.add(new.strict)
    }
}
