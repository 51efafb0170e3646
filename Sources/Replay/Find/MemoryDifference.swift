import Foundation
import VMCore

/// Where two memories differ.
struct MemoryDifference {
    /// A run of bytes that differ, within one page.
    struct Change {
        var address: GuestPhysicalAddress
        var a: [UInt8]
        var b: [UInt8]
    }

    /// Guest page numbers, ascending.
    private(set) var pages: [UInt64] = []
    /// Pages that differ in accessed and dirty bits of page-table entries alone.
    private(set) var maskedPages: [UInt64] = []
    /// Pages of RAM that only one side has, where that side's isn't zero.
    private(set) var bytes: UInt64 = 0
    private(set) var bytesOfPage: [UInt64: Int] = [:]

    private let a: GuestMemory
    private let b: GuestMemory
    private let isMasked: Bool
    /// Physical addresses that don't count, ascending and apart.
    private let ignored: [Range<UInt64>]

    /// Bytes that are equal between two runs and still don't part them.
    private static let gap = 3

    init(_ a: GuestMemory, _ b: GuestMemory, masked: Bool, ignoring ranges: [Range<UInt64>]) {
        self.a = a
        self.b = b
        isMasked = masked
        ignored = ranges.sorted { $0.lowerBound < $1.lowerBound }
        let touched = (Self.touched(a), Self.touched(b))
        let zero = UnsafeMutableRawBufferPointer.allocate(byteCount: pageSize, alignment: 64)
        zero.initializeMemory(as: UInt8.self, repeating: 0)
        defer { zero.deallocate() }
        for word in 0..<max(touched.0.count, touched.1.count) {
            let left = word < touched.0.count ? touched.0[word] : 0
            let right = word < touched.1.count ? touched.1[word] : 0
            var either = left | right
            while either != 0 {
                let bit = either.trailingZeroBitCount
                either &= either - 1
                let number = UInt64(64 * word + bit)
                // To read a page that was never touched would allocate it.
                let x =
                    left >> UInt64(bit) & 1 == 1
                    ? a.page(a.filePage(ofGuestPage: number)!) : UnsafeRawBufferPointer(zero)
                let y =
                    right >> UInt64(bit) & 1 == 1
                    ? b.page(b.filePage(ofGuestPage: number)!) : UnsafeRawBufferPointer(zero)
                if memcmp(x.baseAddress!, y.baseAddress!, pageSize) != 0 { note(number, x, y) }
            }
        }
    }

    /// A bit for each guest page that was ever touched.
    private static func touched(_ memory: GuestMemory) -> [UInt64] {
        let end = memory.map.regions.map { $0.end.rawValue }.max() ?? 0
        var words = [UInt64](repeating: 0, count: Int(end / UInt64(pageSize) + 63) / 64)
        memory.forEachTouchedPage { page in
            guard let number = memory.address(ofFilePage: page).map({ $0.rawValue / UInt64(pageSize) }) else { return }
            words[Int(number / 64)] |= 1 << (number % 64)
        }
        return words
    }

    private mutating func note(_ number: UInt64, _ x: UnsafeRawBufferPointer, _ y: UnsafeRawBufferPointer) {
        let count = count(number, x, y, masked: isMasked)
        if count > 0 {
            pages.append(number)
            bytesOfPage[number] = count
            bytes += UInt64(count)
        } else if isMasked, self.count(number, x, y, masked: false) > 0 {
            maskedPages.append(number)
        }
    }

    private func count(_ number: UInt64, _ x: UnsafeRawBufferPointer, _ y: UnsafeRawBufferPointer, masked: Bool) -> Int
    {
        var count = 0
        forEachDifference(number, x, y, masked: masked) { _ in count += 1 }
        return count
    }

    /// Calls `body` with the offset of each byte that differs and counts.
    private func forEachDifference(
        _ number: UInt64, _ x: UnsafeRawBufferPointer, _ y: UnsafeRawBufferPointer, masked: Bool,
        _ body: (Int) -> Void
    ) {
        for start in stride(from: 0, to: pageSize, by: 4) {
            let (p, q) = (
                x.loadUnaligned(fromByteOffset: start, as: UInt32.self),
                y.loadUnaligned(fromByteOffset: start, as: UInt32.self)
            )
            var difference = p ^ q
            // What looks like a present entry on both sides, as in the masked digest.
            if masked, p & q & 1 == 1 { difference &= ~0x60 }
            guard difference != 0 else { continue }
            for byte in 0..<4 where difference >> (8 * UInt32(byte)) & 0xFF != 0 {
                if !isIgnored(number * UInt64(pageSize) + UInt64(start + byte)) { body(start + byte) }
            }
        }
    }

    private func isIgnored(_ address: UInt64) -> Bool {
        guard !ignored.isEmpty else { return false }
        return ignored.contains { $0.contains(address) }
    }

    /// The first `limit` runs of bytes that differ.
    func changes(limit: Int) -> [Change] {
        var changes: [Change] = []
        for number in pages where changes.count < limit {
            let address = GuestPhysicalAddress(number * UInt64(pageSize))
            let x = a.read(address, count: pageSize) ?? Array(repeating: 0, count: pageSize)
            let y = b.read(address, count: pageSize) ?? Array(repeating: 0, count: pageSize)
            var runs: [Range<Int>] = []
            x.withUnsafeBytes { x in
                y.withUnsafeBytes { y in
                    forEachDifference(number, x, y, masked: isMasked) { offset in
                        if let last = runs.last, offset - last.upperBound <= Self.gap {
                            runs[runs.count - 1] = last.lowerBound..<(offset + 1)
                        } else {
                            runs.append(offset..<(offset + 1))
                        }
                    }
                }
            }
            changes += runs.map {
                Change(address: address + UInt64($0.lowerBound), a: Array(x[$0]), b: Array(y[$0]))
            }
        }
        return Array(changes.prefix(limit))
    }

    /// Consecutive pages that differ.
    var pageRuns: [(first: UInt64, count: UInt64)] {
        pages.reduce(into: []) { runs, page in
            if let last = runs.last, last.first + last.count == page {
                runs[runs.count - 1].count += 1
            } else {
                runs.append((page, 1))
            }
        }
    }

    // MARK: Picture

    private enum Shade: UInt8 {
        case outside, hole, untouched, equal, masked, different
    }

    /// The guest-physical address space with one square a page, row by row: holes, pages that were never touched, pages
    /// that are equal, pages that differ in accessed and dirty bits alone, pages that differ.
    func picture() -> PNG {
        let count = Int((max(a.map.regions.last!.end, b.map.regions.last!.end).rawValue) / UInt64(pageSize))
        // About twice as wide as high, a power of two, so that a row is a round number of bytes.
        var columns = 64
        while columns * columns / 2 < count { columns *= 2 }
        let rows = (count + columns - 1) / columns
        let scale = max(1, 512 / columns)
        var picture = PNG(
            width: columns * scale, height: rows * scale,
            palette: [
                (0xFF, 0xFF, 0xFF), (0xD0, 0xD0, 0xD0), (0x20, 0x20, 0x28), (0x50, 0x60, 0x78), (0xE0, 0xB0, 0x30),
                (0xE0, 0x30, 0x30),
            ])
        let touched = (Self.touched(a), Self.touched(b))
        func has(_ words: [UInt64], _ page: Int) -> Bool {
            page / 64 < words.count && words[page / 64] >> UInt64(page % 64) & 1 == 1
        }
        func isRAM(_ page: Int) -> Bool {
            a.filePage(ofGuestPage: UInt64(page)) != nil || b.filePage(ofGuestPage: UInt64(page)) != nil
        }
        var shades = (0..<(rows * columns)).map { page -> Shade in
            if page >= count { return .outside }
            if has(touched.0, page) || has(touched.1, page) { return .equal }
            return isRAM(page) ? .untouched : .hole
        }
        for page in maskedPages { shades[Int(page)] = .masked }
        for page in pages { shades[Int(page)] = .different }
        for row in 0..<(rows * scale) {
            for column in 0..<(columns * scale) {
                picture.pixels[row * picture.width + column] = shades[row / scale * columns + column / scale].rawValue
            }
        }
        return picture
    }
}
