/// The 16-byte receiver FIFO of the 16550.
struct ReceiveFIFO: Codable, Equatable, Sendable {
    static let capacity = 16

    private var bytes: [UInt8] = []

    var count: Int { bytes.count }
    var isEmpty: Bool { bytes.isEmpty }
    var isFull: Bool { bytes.count >= Self.capacity }

    /// Appends a byte; false and unchanged when full.
    mutating func append(_ byte: UInt8) -> Bool {
        guard !isFull else { return false }
        bytes.append(byte)
        return true
    }

    mutating func removeFirst() -> UInt8? { bytes.isEmpty ? nil : bytes.removeFirst() }

    mutating func removeAll() { bytes.removeAll(keepingCapacity: true) }

    init() {}

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        bytes = try container.decode([UInt8].self)
        guard bytes.count <= Self.capacity else {
            throw DecodingError.dataCorruptedError(
                in: container, debugDescription: "\(bytes.count) bytes in a FIFO of \(Self.capacity)")
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(bytes)
    }
}
