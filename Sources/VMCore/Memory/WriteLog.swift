/// Shares what an engine reports as written among all who follow it.
///
/// An engine forgets what it has reported. So the log is the only one that asks it, and each follower has a set of its
/// own: the pages that may have been written since it took them last.
public final class WriteLog {
    fileprivate let engine: any Engine
    fileprivate private(set) var followers: [Follower] = []

    /// Starts to track writes; everything before counts as known.
    public init(engine: any Engine) throws {
        self.engine = engine
        try engine.trackWrites()
        try engine.takeWrittenPages { _ in }
    }

    /// Someone who wants to know of every page written from now on.
    public func follow() throws -> Follower {
        try collect()
        let follower = Follower(log: self, pages: engine.memory.filePages)
        followers.append(follower)
        return follower
    }

    func drop(_ follower: Follower) { followers.removeAll { $0 === follower } }

    fileprivate func collect() throws {
        try engine.takeWrittenPages { page in
            for follower in followers { follower.insert(page) }
        }
    }

    /// A set of pages of the memory file, a bit each.
    public final class Follower {
        /// Not owned: the log owns its followers, and the machine the log.
        private weak var log: WriteLog?
        private var words: [UInt64]
        /// The first and the last word of the set that may hold a bit: a large memory with few writes isn't searched.
        private var first = Int.max
        private var last = -1

        fileprivate init(log: WriteLog, pages: Int) {
            self.log = log
            words = Array(repeating: 0, count: (pages + 63) / 64)
        }

        fileprivate func insert(_ page: Int) {
            words[page >> 6] |= 1 << UInt64(page & 63)
            first = min(first, page >> 6)
            last = max(last, page >> 6)
        }

        /// Calls `body` for each page of the memory file that may have been written since the last call, in ascending
        /// order.
        public func take(_ body: (Int) throws -> Void) throws {
            try log?.collect()
            guard first <= last else { return }
            for index in first...last {
                var word = words[index]
                words[index] = 0
                while word != 0 {
                    try body(64 * index + word.trailingZeroBitCount)
                    word &= word - 1
                }
            }
            first = .max
            last = -1
        }

        /// Replaces pages; nil content is a page of zeros, and what stands there twice is the same. This follower knows, the others are told.
        public func setPages(_ pages: [(page: Int, content: UnsafeRawBufferPointer?)]) {
            guard let log else { return }
            log.engine.memory.replacePages(pages)
            for (page, _) in pages { log.engine.noteReplacedPage(page) }
            for other in log.followers where other !== self { pages.forEach { other.insert($0.page) } }
        }

        /// Ends the following.
        public func cancel() { log?.drop(self) }
    }
}
