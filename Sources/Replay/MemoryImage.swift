import Foundation
import Trace
import VMCore

/// A page's 4096 bytes outside the guest, never changed once made.
final class PageCopy {
    private let bytes = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
    private let count: PageCount

    init(_ content: UnsafeRawBufferPointer, count: PageCount) {
        bytes.copyMemory(from: content.baseAddress!, byteCount: pageSize)
        self.count = count
        count.live += 1
    }

    deinit {
        bytes.deallocate()
        count.live -= 1
    }

    var content: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: bytes, count: pageSize) }
}

/// How many page copies there are.
final class PageCount {
    fileprivate(set) var live = 0
}

/// What a page holds, and where that can be read.
enum ImagePage {
    case zero
    case stored(PageSlot)
    case copy(PageCopy)

    /// Whether the two are the same by identity: equal content may still be stored twice.
    func isSame(as other: Self) -> Bool {
        switch (self, other) {
        case (.zero, .zero): true
        case (.stored(let a), .stored(let b)): a == b
        case (.copy(let a), .copy(let b)): a === b
        default: false
        }
    }
}

/// All of a guest's memory at one moment, by pages of the memory file.
///
/// A persistent radix tree: images share all nodes in which they don't differ. So a copy costs nothing, a change costs
/// a path of nodes, and comparing two images costs what differs between them.
struct MemoryImage {
    /// 64 children a node: a change in 256 MiB copies three nodes of about 1 KiB.
    private static let bits = 6
    private static let width = 1 << bits

    private final class Node {
        /// Of an inner node; a missing child is all zeros.
        var children: [Node?] = []
        /// Of a leaf.
        var pages: [ImagePage] = []

        init(leaf: Bool) {
            if leaf {
                pages = Array(repeating: .zero, count: MemoryImage.width)
            } else {
                children = Array(repeating: nil, count: MemoryImage.width)
            }
        }

        init(copying other: Node) { (children, pages) = (other.children, other.pages) }
    }

    private var root: Node?
    /// Levels above the leaves.
    private let height: Int

    /// An image of zeros.
    init(pages: Int) {
        var height = 0
        while pages >> (Self.bits * (height + 1)) > 0 { height += 1 }
        self.height = height
    }

    subscript(page: Int) -> ImagePage {
        get {
            var node = root
            for level in stride(from: height, to: 0, by: -1) { node = node?.children[Self.index(page, level)] }
            return node?.pages[Self.index(page, 0)] ?? .zero
        }
        set { Self.set(&root, page, newValue, level: height) }
    }

    private static func index(_ page: Int, _ level: Int) -> Int { page >> (bits * level) & (width - 1) }

    private static func set(_ node: inout Node?, _ page: Int, _ content: ImagePage, level: Int) {
        if node == nil {
            if case .zero = content { return }
            node = Node(leaf: level == 0)
        } else if !isKnownUniquelyReferenced(&node), let shared = node {
            node = Node(copying: shared)
        }
        guard let node else { return }
        if level == 0 {
            node.pages[index(page, 0)] = content
        } else {
            set(&node.children[index(page, level)], page, content, level: level - 1)
        }
    }

    /// Calls `body` for each page that isn't the same in both images, in ascending order, with this image's content.
    func forEachDifference(from other: Self, _ body: (Int, ImagePage) throws -> Void) rethrows {
        precondition(height == other.height, "images of different machines aren't compared")
        try Self.compare(root, other.root, page: 0, level: height, body)
    }

    private static func compare(
        _ a: Node?, _ b: Node?, page: Int, level: Int, _ body: (Int, ImagePage) throws -> Void
    ) rethrows {
        if a === b { return }
        for i in 0..<width {
            if level > 0 {
                try compare(a?.children[i], b?.children[i], page: page + i << (bits * level), level: level - 1, body)
            } else {
                let content = a?.pages[i] ?? .zero
                if !content.isSame(as: b?.pages[i] ?? .zero) { try body(page + i, content) }
            }
        }
    }
}

/// Whether a page holds nothing but zeros.
func isZero(_ page: UnsafeRawBufferPointer) -> Bool {
    page.load(as: UInt64.self) == 0 && memcmp(page.baseAddress!, page.baseAddress! + 8, page.count - 8) == 0
}

/// The latest 16 Ki to 32 Ki pages that were read from the trace, at most 128 MiB: going to and fro between two
/// checkpoints unpacks each page once.
struct SlotContents {
    private static let generation = 1 << 14
    private var young: [PageSlot: PageCopy] = [:]
    private var old: [PageSlot: PageCopy] = [:]
    private let count = PageCount()

    mutating func copy(of slot: PageSlot, _ slots: SlotReader) throws -> PageCopy {
        if let found = young[slot] { return found }
        let copy = try old[slot] ?? slots.read(slot) { PageCopy($0, count: count) }
        if young.count >= Self.generation {
            old = young
            young = [:]
        }
        young[slot] = copy
        return copy
    }
}
