import CXXHash

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

    init(_ hash: XXH128_hash_t) { self.init(low: hash.low64, high: hash.high64) }

    /// XXH3-128 of some bytes.
    public init(of bytes: UnsafeRawBufferPointer) { self.init(XXH3_128bits(bytes.baseAddress, bytes.count)) }

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

/// Hashes one page; zero for a page of zeros.
///
/// `scratch` has room for a page. Invariant: `page` has exactly `pageSize` bytes, aligned to 4.
func digest(ofPage page: UnsafeRawBufferPointer, number: Int, kind: DigestKind,
            scratch: UnsafeMutableRawPointer) -> Digest128 {
    let words = page.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: UInt32.self)
    let masked = scratch.assumingMemoryBound(to: UInt32.self)
    let keep: UInt32 = kind == .masked ? 0x60 : 0
    var any: UInt32 = 0
    for i in 0..<(pageSize / 4) {
        let word = words[i]
        any |= word
        masked[i] = word & ~((word & 1) &* keep)
    }
    if any == 0 { return Digest128() }
    return Digest128(XXH3_128bits_withSeed(masked, pageSize, UInt64(number) &+ 1))
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
        let new = digest(ofPage: memory.page(page), number: page, kind: .masked, scratch: scratch)
        total.subtract(pages[page])
        total.add(new)
        pages[page] = new
    }

    /// Reads all of memory anew, for the digests that are printed and stored.
    public static func ofAll(_ memory: GuestMemory, kind: DigestKind) -> Digest128 {
        let scratch = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
        defer { scratch.deallocate() }
        var total = Digest128()
        memory.forEachTouchedPage { total.add(digest(ofPage: memory.page($0), number: $0, kind: kind, scratch: scratch)) }
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

    /// Takes a page's content into the digests. `content` has `pageSize` bytes, aligned to 4.
    public func update(page: Int, content: UnsafeRawBufferPointer) {
        let new = (digest(ofPage: content, number: page, kind: .masked, scratch: scratch),
                   digest(ofPage: content, number: page, kind: .strict, scratch: scratch))
        masked.subtract(pages[page].masked)
        strict.subtract(pages[page].strict)
        pages[page] = new
        masked.add(new.0)
        strict.add(new.1)
    }
}
