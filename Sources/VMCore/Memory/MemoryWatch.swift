import CKVM

/// Follows what is written to memory: keeps the masked digest current, and can take memory back to a mark.
public final class MemoryWatch {
    private let memory: GuestMemory
    private let writes: WriteLog.Follower
    public let digest: MemoryDigest
    /// A second copy of memory, as it was at the mark. Invariant: mapped for `map.fileBytes` bytes until deinit.
    private var shadow: UnsafeMutableRawPointer?
    private var sinceMark: Set<Int> = []

    public init(memory: GuestMemory, log: WriteLog) throws {
        self.memory = memory
        writes = try log.follow()
        digest = MemoryDigest(memory: memory)
    }

    deinit {
        writes.cancel()
        if let shadow { munmap(shadow, Int(memory.map.fileBytes)) }
    }

    /// Takes all that was written into the digest.
    public func refresh() throws {
        let follow = shadow != nil
        try writes.take {
            digest.update(page: $0)
            if follow { sinceMark.insert($0) }
        }
    }

    /// Makes the present the moment that `rewind` goes back to. Costs a copy of what was written since the last mark.
    func mark() throws {
        try refresh()
        if let shadow {
            for page in sinceMark { (shadow + page * pageSize).copyMemory(from: memory.page(page).baseAddress!, byteCount: pageSize) }
        } else {
            let made = mmap(nil, Int(memory.map.fileBytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            guard let made, made != UnsafeMutableRawPointer(bitPattern: -1) else { throw SystemCallError("mmap shadow") }
            memory.forEachTouchedPage {
                (made + $0 * pageSize).copyMemory(from: memory.page($0).baseAddress!, byteCount: pageSize)
            }
            shadow = made
        }
        sinceMark.removeAll(keepingCapacity: true)
    }

    /// Takes memory back to the mark.
    func rewind() throws {
        guard let shadow else { return }
        try refresh()
        for page in sinceMark {
            memory.setPage(page, to: UnsafeRawBufferPointer(start: shadow + page * pageSize, count: pageSize))
        }
        sinceMark.removeAll(keepingCapacity: true)
        try refresh()
        sinceMark.removeAll(keepingCapacity: true)
    }
}
