import VMCore

/// A run of guest memory as a person names it: `ADDR`, `ADDR:LEN`, `phys:ADDR:LEN`, with numbers or symbols.
public struct AddressRange: Hashable, Sendable {
    public var address: UInt64
    /// In bytes, at least 1.
    public var count: Int
    public var isPhysical: Bool

    /// The largest run, in bytes.
    public static let largest = 1 << 20

    public init(address: UInt64, count: Int, isPhysical: Bool) {
        self.address = address
        self.count = count
        self.isPhysical = isPhysical
    }

    /// Nil where the text names no run. Without a length it is the symbol's, where the text is a symbol, or `standard`.
    public init?(_ text: String, symbols: SymbolTable, standard: Int) {
        var rest = text[...]
        isPhysical = rest.hasPrefix("phys:")
        if isPhysical || rest.hasPrefix("virt:") { rest = rest.dropFirst(5) }
        if let address = symbols.address(String(rest)) {
            self.address = address
            let size = symbols[String(rest)]?.size ?? 0
            count = size > 0 && size <= UInt64(Self.largest) ? Int(size) : standard
            return
        }
        guard let colon = rest.lastIndex(of: ":"), let address = symbols.address(String(rest[..<colon])),
            let count = symbols.address(String(rest[rest.index(after: colon)...])), count > 0,
            count <= UInt64(Self.largest)
        else { return nil }
        self.address = address
        self.count = Int(count)
    }
}

extension GuestView {
    /// The bytes of a run, as many as are mapped and RAM. Changes nothing in the guest.
    func bytes(_ range: AddressRange) throws -> [UInt8] {
        guard range.isPhysical else {
            return PageWalk(memory: memory, state: try registers()).bytes(at: range.address, count: range.count)
        }
        var result: [UInt8] = []
        while result.count < range.count {
            let address = GuestPhysicalAddress(range.address &+ UInt64(result.count))
            let run = min(range.count - result.count, pageSize - Int(address.rawValue & 0xFFF))
            guard let part = memory.read(address, count: run) else { break }
            result += part
        }
        return result
    }

    /// Where a run lies in physical memory: a piece a page, consecutive ones joined. Nil where part of it isn't mapped.
    func physical(_ range: AddressRange) throws -> [Range<UInt64>]? {
        if range.isPhysical {
            let (end, overflow) = range.address.addingReportingOverflow(UInt64(range.count))
            return overflow ? nil : [range.address..<end]
        }
        let walk = PageWalk(memory: memory, state: try registers())
        var pieces: [Range<UInt64>] = []
        var done = 0
        while done < range.count {
            let address = range.address &+ UInt64(done)
            let run = min(range.count - done, pageSize - Int(address & 0xFFF))
            guard let start = walk.physical(address)?.rawValue else { return nil }
            if let last = pieces.last, last.upperBound == start {
                pieces[pieces.count - 1] = last.lowerBound..<(start + UInt64(run))
            } else {
                pieces.append(start..<(start + UInt64(run)))
            }
            done += run
        }
        return pieces
    }
}
